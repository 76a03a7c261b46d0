"""GPTQ's layout of a linear layer, which AutoRound shares: packed along the input, transposed, with zero points.

For in × out weights of b bits: `X.qweight` is I32 (in · b / 32, out), column o holding the integers of output o;
`X.scales` is (in / group, out); `X.qzeros` is I32 (in / group, out · b / 32), packed along the output; `X.g_idx` is
(in,) and gives each input's group. A weight is (q - zero) · scale. The first version of the format stores zero - 1, the
second zero itself. The reference is `TorchLinear` in
https://github.com/ModelCloud/GPTQModel/blob/main/gptqmodel/nn_modules/qlinear/torch.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tritgguf.converter.checkpoint.config_json import FILE
from tritgguf.converter.checkpoint.packed_integers import WORD_BITS, IntegerTensor, Part, unpacked
from tritgguf.converter.checkpoint.packing import StoredTensors
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import Codes, Float32Array, RowIndices, SourceTensor, row_chunks, span
from tritgguf.converter.errors import SourceError, UnsupportedError

QWEIGHT, QZEROS, SCALES, G_IDX = ".qweight", ".qzeros", ".scales", ".g_idx"
BESIDE = (QZEROS, SCALES, G_IDX)


@dataclass(frozen=True)
class GptqTensor(IntegerTensor):
    """One packed matrix; `minus_one`: `qzeros` holds each zero point minus one."""

    qzeros: StoredTensor
    minus_one: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.packed, self.scales, Part(self.qzeros)

    def on_disk(self, rows: slice | RowIndices) -> list[npt.NDArray[np.uint8]]:
        return [*self.packed.on_disk(rows), *self.scales.on_disk(rows), self.qzeros.data]

    def zeros(self, rows: slice | RowIndices) -> npt.NDArray[np.int16]:
        """Return the rows' zero points, (n_rows, n_groups)."""
        wanted = span(rows, self.shape[0])
        first = wanted.start // WORD_BITS * WORD_BITS  # a word begins there, whatever the width is
        words = self.qzeros.data.view("<u4").reshape(self.qzeros.shape)
        start, stop = first * self.bits // WORD_BITS, -(-wanted.stop * self.bits // WORD_BITS)
        taken = np.ascontiguousarray(words[:, start:stop])
        if self.minus_one and WORD_BITS % self.bits == 0:
            taken = taken + np.uint32(sum(1 << place for place in range(0, WORD_BITS, self.bits)))
        zeros = unpacked(taken.view(np.uint8), self.bits).astype(np.int16)
        if self.minus_one and WORD_BITS % self.bits:
            zeros = zeros + 1 & (1 << self.bits) - 1
        numbers = np.arange(wanted.start, wanted.stop) if isinstance(rows, slice) else rows
        of_rows: npt.NDArray[np.int16] = zeros[:, numbers - first].T
        return of_rows

    def weights(self, groups: Float32Array, rows: slice | RowIndices) -> Float32Array:
        groups -= self.zeros(rows)[..., None]
        groups *= self.scales.floats(rows)[..., None]
        return groups

    def four_level_zeros(self, rows: slice | RowIndices) -> Codes | None:
        zeros = self.zeros(rows)
        return zeros.astype(np.int8) if ((zeros == 1) | (zeros == 2)).all() else None

    def has_zeros(self, zero: int) -> bool:
        """Whether every zero point is that one."""
        shape = (self.shape[0], self.shape[1] // self.group)
        return all((self.zeros(rows) == zero).all() for rows in row_chunks(shape))


@dataclass(frozen=True)
class Said:
    """What config.json says of the packed modules.

    `packing` names the format; `bits` and `groups` are those of any module, -1 for whole rows; `symmetric` means that
    zero points are 2^(bits - 1). `minus_one` tells how zero points are stored; None: it isn't said. `key` is the key
    that says so.
    """

    packing: str
    bits: tuple[int, ...]
    groups: tuple[int, ...]
    symmetric: bool
    minus_one: bool | None
    key: str


def bits_and_groups(
    settings: Settings, modules: Mapping[str, Settings], supported: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the widths and the group sizes that occur; raise UnsupportedError for a width that isn't supported."""
    bits, groups = [settings.integer("bits")], [settings.integer("group_size", least=-1)]
    for said in modules.values():
        bits += [said.integer("bits")] if said.has("bits") else []
        groups += [said.integer("group_size", least=-1)] if said.has("group_size") else []
    packed = [width for width in bits if width < 16]  # modules of 16 bits or more stay floats
    for width in packed:
        if width not in supported:
            known = ", ".join(map(str, supported))
            raise UnsupportedError(f"{settings.name('bits')} or an override is {width}; read are {known} bits")
    return tuple(dict.fromkeys(packed)), tuple(dict.fromkeys(groups))


def overrides(settings: Settings, key: str) -> dict[str, Settings]:
    """Return the settings of single modules, by the name or pattern that config.json gives."""
    listed = settings.object(key)
    return {name: listed.object(name) for name, value in listed.items() if isinstance(value, dict)}


def read_modules(stored: StoredTensors, said: Said) -> dict[str, SourceTensor]:
    """Return all tensors, packed modules as GptqTensor; raise SourceError, UnsupportedError where one can't be read."""
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        module = name.removesuffix(QWEIGHT)
        if module != name:
            tensors[f"{module}.weight"] = _module(module, stored, said)
        elif suffix := next((s for s in BESIDE if name.endswith(s)), None):
            qweight = name.removesuffix(suffix) + QWEIGHT
            if qweight not in stored:
                raise SourceError(f"the checkpoint holds {name}, but no {qweight}: fetch it again")
        else:
            tensors.setdefault(name, tensor)
    if not any(isinstance(tensor, GptqTensor) for tensor in tensors.values()):
        raise SourceError(f"config.json says {said.packing}, but no tensor is packed: remove its quantization_config")
    return tensors


def _module(module: str, stored: StoredTensors, said: Said) -> GptqTensor:
    if f"{module}.weight" in stored:
        raise SourceError(f"the checkpoint holds {module}.weight and {module}{QWEIGHT}: it is damaged")
    qweight, scales = stored[module + QWEIGHT], _beside(module, SCALES, tuple(FLOAT_DTYPES), stored)
    qzeros = _beside(module, QZEROS, ("I32",), stored)
    if qweight.dtype != "I32":
        raise SourceError(f"{qweight.name} is {qweight.dtype}; expected I32: the checkpoint is damaged")
    fitting = next(_layouts(qweight.shape, scales.shape, qzeros.shape, said), None)
    if fitting is None:
        raise SourceError(
            f"{module}: qweight {qweight.shape}, scales {scales.shape} and qzeros {qzeros.shape} don't fit each other "
            f"at {_listed(said.bits)} bits in groups of {_listed(said.groups)}, which config.json gives"
        )
    bits, n_columns, group = fitting
    _require_order(module, n_columns, group, stored)
    packed, transposed_scales = Part(qweight, transposed=True), Part(scales, transposed=True)
    shape = (qweight.shape[1], n_columns)
    tensor = GptqTensor(
        f"{module}.weight",
        f"{bits}-bit {said.packing}",
        shape,
        bits,
        group,
        packed,
        transposed_scales,
        qzeros,
        said.minus_one is not False,
    )
    return _by_convention(tensor, said)


def _beside(module: str, suffix: str, dtypes: tuple[str, ...], stored: StoredTensors) -> StoredTensor:
    tensor = stored.get(module + suffix)
    if tensor is None:
        raise SourceError(f"{module}{QWEIGHT} is packed, but the checkpoint has no {module}{suffix}: fetch it again")
    if tensor.dtype not in dtypes:
        raise SourceError(f"{tensor.name} is {tensor.dtype}; expected {' or '.join(dtypes)}: the checkpoint is damaged")
    return tensor


def _layouts(
    qweight: tuple[int, ...], scales: tuple[int, ...], qzeros: tuple[int, ...], said: Said
) -> Iterator[tuple[int, int, int]]:
    """Yield bits, columns and group of the layouts that config.json names and the shapes fit."""
    if not len(qweight) == len(scales) == len(qzeros) == 2 or 0 in (*qweight, *scales, *qzeros):
        return
    (n_words, n_rows), (n_groups, n_scales) = qweight, scales
    for bits in said.bits:
        n_columns = n_words * WORD_BITS // bits
        group = n_columns // n_groups
        named = group in said.groups or (n_groups == 1 and -1 in said.groups)
        whole = n_scales == n_rows and n_words * WORD_BITS == n_columns * bits and n_groups * group == n_columns
        if named and whole and group > 0 and qzeros == (n_groups, -(-n_rows * bits // WORD_BITS)):
            yield bits, n_columns, group


def _require_order(module: str, n_columns: int, group: int, stored: StoredTensors) -> None:
    """Raise UnsupportedError unless neighbouring columns share a group."""
    g_idx = stored.get(module + G_IDX)
    if g_idx is None:
        return
    if g_idx.dtype not in ("I32", "I64") or g_idx.shape != (n_columns,):
        raise SourceError(f"{g_idx.name} is {g_idx.dtype} {g_idx.shape}; expected I32 ({n_columns},)")
    numbers = g_idx.data.view("<i4" if g_idx.dtype == "I32" else "<i8")
    if not np.array_equal(numbers, np.arange(n_columns) // group):
        raise UnsupportedError(
            f"{g_idx.name} gives columns that aren't neighbours one scale (act-order, desc_act), which no tensor type "
            "expresses: quantize the model with desc_act false"
        )


def _by_convention(tensor: GptqTensor, said: Said) -> GptqTensor:
    """Return the tensor as its zero points are stored; raise SourceError where config.json contradicts them.

    Symmetric weights have one zero point, which tells how it is stored; a key that says something else is an error.
    """
    middle = 1 << tensor.bits - 1
    if not said.symmetric or tensor.has_zeros(middle):
        return tensor
    other = replace(tensor, minus_one=not tensor.minus_one)
    if not other.has_zeros(middle):
        return tensor
    if said.minus_one is None:
        return other
    found, zero = (middle, middle + 1) if said.minus_one else (middle - 1, middle - 1)
    raise SourceError(
        f"{said.key} says that zero points are stored {'minus one' if said.minus_one else 'as they are'}, but "
        f"{tensor.qzeros.name} holds {found}, and sym says that they are {middle}: correct {FILE}, with sym false if "
        f"they are {zero}"
    )


def _listed(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))
