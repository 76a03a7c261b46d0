"""Weights in a Hadamard basis, as Prism ML's Bonsai 2 files have them: check the keys that say so, and undo it.

Such a file's program multiplies a layer's input by signs s and, in blocks of 1024 values, by the matrix H with
H[i][j] = (-1)^popcount(i & j) / 32, and then by the stored matrix W'. The plain weights are (W'[row] · H) · s for each
row, also for an embedding, of which the program computes s · (H · row). They are no longer ternary. A program that
doesn't know the keys computes nonsense, whatever the tensors' types are: https://github.com/PrismML-Eng/llama.cpp
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from gguf import Keys

from tritgguf.converter.core.tensors import ByteArray, Float32Array, RowIndices, SourceTensor
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata

PREFIX, OTHER_KEYS = "prism.hadamard.", ("onebit.hadamard_q4_0",)
BLOCK, SIDE = 1024, 32  # H of 1024 is the Kronecker product of two of 32
FIXED = {
    "block_size": BLOCK,
    "transform": "normalized-sylvester-walsh-hadamard",
    "axis": "input-last-dimension",
}
KNOWN = (
    *FIXED, "version", "tied_output", "sign_mode", "sign_widths", "sign_values", "weight_names",
    "inverse_weight_names", "gdn_v_grouped",
)  # fmt: skip
EMBEDDING, OUTPUT, GROUPED = "token_embd.weight", "output.weight", ".ssm_out.weight"
T = TypeVar("T")


def is_rotated(keys: Sequence[str] | Mapping[str, object]) -> str | None:
    """Return the first key that says that the file's weights are in such a basis; None if there is none."""
    return next((key for key in keys if key.startswith(PREFIX) or key in OTHER_KEYS), None)


def convert_first(file: str, key: str) -> str:
    """Return the message of programs that would take such a file's weights for plain ones."""
    return (
        f"{file} has {key}: its weights are in a Hadamard basis, which llama.cpp doesn't compute; convert it first: "
        f"tritgguf convert {file} OUT.gguf --type f16"
    )


@dataclass(frozen=True)
class Basis:
    """The tensors `names`, whose rows are in the basis; `signs` by width, and the order of columns of some of them."""

    names: frozenset[str]
    signs: Mapping[int, Float32Array] = field(repr=False)
    columns: Mapping[str, RowIndices] = field(repr=False)

    def undone(self, tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
        """Return the tensors with those in the basis undone."""
        return {name: self._plain(tensor) if name in self.names else tensor for name, tensor in tensors.items()}

    def _plain(self, tensor: SourceTensor) -> SourceTensor:
        width = tensor.shape[-1]
        signs = self.signs.get(width, np.ones(width, np.float32))
        dtype = f"{tensor.dtype} in a Hadamard basis"  # so that no type is taken to hold its values exactly
        return PlainBasisTensor(tensor.name, dtype, tensor.shape, tensor, signs, self.columns.get(tensor.name))


@dataclass(frozen=True)
class PlainBasisTensor(SourceTensor):
    """A tensor in the plain basis, read from the rotated one `stored`; `columns` is the order of its columns."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: SourceTensor
    signs: Float32Array = field(repr=False)
    columns: RowIndices | None = field(repr=False)

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    @property
    def described(self) -> bool:
        return self.stored.described

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        """Sums of 1024 products of codes and fp16 scales are exact in double, so the result is rounded once."""
        rotated = self.stored.read(rows).astype(np.float64)
        blocks = rotated.reshape(-1, SIDE, SIDE)
        plain = (SYLVESTER @ (blocks @ SYLVESTER)).reshape(rotated.shape) / SIDE * self.signs
        return (plain if self.columns is None else plain[:, self.columns]).astype(np.float32)


def _sylvester(size: int) -> npt.NDArray[np.float64]:
    numbers = np.arange(size)
    bits = numbers[:, None] & numbers
    parity = np.zeros_like(bits)
    while bits.any():
        parity, bits = parity ^ bits & 1, bits >> 1
    return 1.0 - 2.0 * parity


SYLVESTER = _sylvester(SIDE)


def read_basis(file: str, metadata: Metadata, tensors: Mapping[str, SourceTensor]) -> Basis | None:
    """Return the basis that the keys describe, None without such keys.

    Raises UnsupportedError, with the key, where they say anything that isn't known.
    """
    if is_rotated(metadata) is None:
        return None
    return _Keys(file, metadata, tensors).basis()


class _Keys:
    """The keys of one file."""

    def __init__(self, file: str, metadata: Metadata, tensors: Mapping[str, SourceTensor]) -> None:
        self.file, self.metadata, self.tensors = file, metadata, tensors

    def basis(self) -> Basis:
        for key in self.metadata:
            if key in OTHER_KEYS:
                raise UnsupportedError(
                    f"{self.file} has the key {key}: its weights are in a basis of which the rules aren't known here; "
                    "start from the model in another file"
                )
            if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in KNOWN:
                raise self._refused(key, "is unknown", f"expected one of {', '.join(KNOWN)}")
        for name, expected in FIXED.items():
            if (found := self._value(name, type(expected))) != expected:
                raise self._refused(PREFIX + name, f"is {found!r:.80}", f"expected {expected!r}")
        weights = self._names("weight_names")
        lookups = self._names("inverse_weight_names") if f"{PREFIX}inverse_weight_names" in self.metadata else []
        self._check_version(rotated_embedding=EMBEDDING in lookups)
        if set(lookups) - {EMBEDDING}:
            raise self._refused(PREFIX + "inverse_weight_names", f"has {lookups[0]:.80}", f"expected only {EMBEDDING}")
        if EMBEDDING in weights:
            raise self._refused(PREFIX + "weight_names", f"has {EMBEDDING}", "expected it in inverse_weight_names")
        names = frozenset([*weights, *lookups])
        signs = self._signs()
        for name in sorted(names):
            self._check_tensor(name, signs)
        grouped = [name for name in weights if name.endswith(GROUPED)]
        if not grouped or not self._value("gdn_v_grouped", bool):
            return Basis(names, signs or {}, {})
        return Basis(names, signs or {}, {name: self._ungrouped(self.tensors[name].shape[-1]) for name in grouped})

    def _check_version(self, *, rotated_embedding: bool) -> None:
        """Version 2 is that of a rotated embedding which is the output layer too; version 1 has no such thing."""
        version, tied = self._value("version", int), self._optional("tied_output", bool, default=False)
        shared = rotated_embedding and OUTPUT not in self.tensors
        if tied != shared or version != (2 if shared else 1):
            raise self._refused(
                PREFIX + "version",
                f"is {version}, with tied_output {str(tied).lower()} and {'an' if OUTPUT in self.tensors else 'no'} "
                f"{OUTPUT}",
                f"expected 2 and true where a rotated {EMBEDDING} is the output layer too, else 1",
            )

    def _signs(self) -> dict[int, Float32Array] | None:
        """Return the signs by width; None if there are none."""
        mode = self._value("sign_mode", str)
        if mode == "identity":
            for name in ("sign_widths", "sign_values"):
                if self._optional(name, list, default=[]):
                    raise self._refused(PREFIX + name, "has signs, but sign_mode is identity", "expected none")
            return None
        if mode != "explicit":
            raise self._refused(PREFIX + "sign_mode", f"is {mode!r:.80}", "expected identity or explicit")
        widths, found = self._value("sign_widths", list), self._value("sign_values", list)
        sound = all(type(width) is int and width > 0 and width % BLOCK == 0 for width in widths)
        if not sound or len(set(widths)) != len(widths):
            raise self._refused(
                PREFIX + "sign_widths", f"is {widths!r:.80}", f"expected different multiples of {BLOCK}"
            )
        if len(found) != sum(widths) or any(value not in (-1, 1) or isinstance(value, bool) for value in found):
            raise self._refused(
                PREFIX + "sign_values", f"has {len(found)} values", f"expected {sum(widths)}, all 1 or -1"
            )
        values: Float32Array = np.array(found, np.float32)
        ends = np.cumsum(widths)
        return {width: values[end - width : end] for width, end in zip(widths, ends, strict=True)}

    def _names(self, name: str) -> list[str]:
        names: list[object] = self._value(name, list)
        if not all(isinstance(text, str) for text in names) or len(set(names)) != len(names):
            raise self._refused(PREFIX + name, "isn't a list of different names", "expected the names of tensors")
        return [str(text) for text in names]

    def _check_tensor(self, name: str, signs: Mapping[int, Float32Array] | None) -> None:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self._refused(PREFIX + "weight_names", f"has {name:.80}", "but the file has no such tensor")
        width = tensor.shape[-1]
        if len(tensor.shape) != 2 or width % BLOCK:
            raise self._refused(
                PREFIX + "weight_names",
                f"has {name} of shape {tensor.shape}",
                f"expected rows of a multiple of {BLOCK}",
            )
        if signs is not None and width not in signs:
            raise self._refused(PREFIX + "sign_widths", f"has no width {width}", f"though {name} has it")

    def _ungrouped(self, width: int) -> RowIndices:
        """Return where llama.cpp's columns are: its V heads repeat the K heads, and here they are grouped by these."""
        arch = str(self.metadata[Keys.General.ARCHITECTURE].data)
        names = (Keys.SSM.GROUP_COUNT.format(arch=arch), Keys.SSM.TIME_STEP_RANK.format(arch=arch))
        n_keys, n_values = (self._count(key) for key in names)
        if not n_keys or not n_values or n_values % n_keys or width % n_values:
            raise self._refused(
                names[1], f"is {n_values}, and {names[0]} {n_keys}", f"expected heads that divide {width} columns"
            )
        heads = np.arange(width, dtype=np.int64).reshape(n_keys, n_values // n_keys, -1)
        return np.ascontiguousarray(heads.swapaxes(0, 1)).reshape(-1)

    def _count(self, key: str) -> int:
        number = self.metadata[key].data if key in self.metadata else 0
        return number if type(number) is int and number > 0 else 0

    def _value(self, name: str, kind: type[T]) -> T:
        key = PREFIX + name
        if key not in self.metadata:
            raise self._refused(key, "is missing", "the other keys need it")
        return self._of_kind(key, kind)

    def _optional(self, name: str, kind: type[T], *, default: T) -> T:
        return self._of_kind(PREFIX + name, kind) if PREFIX + name in self.metadata else default

    def _of_kind(self, key: str, kind: type[T]) -> T:
        found = self.metadata[key].data
        if type(found) is not kind:
            raise self._refused(key, f"is {found!r:.80}", f"expected {KINDS[kind]}")
        return found

    def _refused(self, key: str, found: str, expected: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.file}: {key} {found}, {expected}: its weights are in a Hadamard basis that isn't known here; start "
            "from the model in another file"
        )


KINDS: Mapping[type, str] = {int: "a whole number", bool: "true or false", str: "a text", list: "a list"}
assert math.isqrt(BLOCK) == SIDE
