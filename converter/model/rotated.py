"""A model whose residual stream is in another basis: it computes the same, and its weights are easier to round.

RMSNorm without its factors commutes with a rotation R, so factors and R can be folded into the layers around it: what
reads the stream becomes W · factors · Rᵀ, what adds to it R · W, and all norms 1. Large weights are spread over many
columns. In the same way each head's values are rotated in the value layer and back in the attention's output layer.
It is the rotation of QuaRot without anything left to compute at run time: https://arxiv.org/abs/2404.00456
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from gguf import Keys

from tritgguf.converter.core.tensors import ByteArray, Float32Array, Following, RowIndices, SourceTensor
from tritgguf.converter.gguf_io.metadata import Metadata, string
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.derived import ComputedTensor
from tritgguf.converter.model.model import Model

KEY, RULE = "tritgguf.rotation", "hadamard-1"  # 1 is the version of what this file computes
READERS = {"attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"), "ffn_norm": ("ffn_gate", "ffn_up")}
ADDING = ("attn_output", "ffn_down")
OTHERS = ("attn_q_norm", "attn_k_norm")
BIASED = (*READERS["attn_norm"], *READERS["ffn_norm"], *ADDING)
IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
EMBEDDING, OUTPUT_NORM, OUTPUT = "token_embd.weight", "output_norm.weight", "output.weight"
RUNS = 64  # of values that are turned together, so that what becomes of them stays in a cache
MATRICES_KEPT = 4  # rotated as a whole, while their rows are read in chunks, by some threads

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Basis:
    """A rotation of `size` values: signs, then the Hadamard matrix of a power of two, then a cosine transform.

    The latter mixes as many runs of values as the size has odd factors; both are divided so as to be orthogonal.
    """

    size: int

    def turned(self, rows: Float64Array) -> Float64Array:
        """Return rows, (n, k · size), each run of `size` values multiplied by R from the left."""
        runs, signs, cosines = rows.reshape(-1, self.size), self._signs()[:, None], self._cosines()
        result = np.empty(runs.shape)
        for start in range(0, len(runs), RUNS):
            values = _hadamard(runs[start : start + RUNS].T * signs, self.size // len(cosines))
            mixed = np.zeros((len(cosines), values.size // len(cosines)))
            for column, row in zip(cosines.T, values.reshape(mixed.shape), strict=True):
                mixed += column[:, None] * row  # how a BLAS rounds may depend on the number of columns
            result[start : start + RUNS] = mixed.reshape(self.size, -1).T
        return result.reshape(rows.shape)

    def _signs(self) -> Float64Array:
        digest = hashlib.shake_128(f"{RULE} {self.size}".encode()).digest(self.size // 8 + 1)
        return 1.0 - 2.0 * np.unpackbits(np.frombuffer(digest, np.uint8))[: self.size].astype(np.float64)

    def _cosines(self) -> Float64Array:
        n = self.size // (self.size & -self.size)
        numbers = np.arange(n)
        matrix = np.cos(np.pi / n * numbers[:, None] * (numbers + 0.5)) * math.sqrt(2 / n)
        matrix[0] = 1 / math.sqrt(n)
        return matrix


def _hadamard(columns: Float64Array, power: int) -> Float64Array:
    """Return columns whose runs of `power` values, 2^k, are multiplied by the Hadamard matrix, divided by its norm."""
    values, after = np.array(columns, order="C"), np.empty(columns.shape)
    half = columns.shape[1]  # of the values that are mixed: one row of them all, then two, then four
    while half < power * columns.shape[1]:
        before, then = values.reshape(-1, 2, half), after.reshape(-1, 2, half)
        np.add(before[:, 0], before[:, 1], out=then[:, 0])
        np.subtract(before[:, 0], before[:, 1], out=then[:, 1])
        values, after = after, values
        half *= 2
    return values / math.sqrt(power)


@dataclass(frozen=True, eq=False)
class _Rotated(Following):
    """A tensor in another basis."""

    basis: Basis

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return f"{self.stored.dtype} in another basis"  # so that no type is taken to hold its values exactly


@dataclass(frozen=True, eq=False)
class RotatedColumns(_Rotated):
    """Rows multiplied by the norm's factors, float32 (n_columns,), if any, and rotated."""

    factors: Float32Array | None = field(default=None, repr=False)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values = self.stored.read(rows).astype(np.float64)
        return self.basis.turned(values if self.factors is None else values * self.factors).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RotatedRows(_Rotated):
    """Columns rotated; each row follows from many, so the whole matrix is computed at once."""

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return np.ascontiguousarray(_with_rotated_rows(self)[rows])

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(slice(None))


@lru_cache(maxsize=MATRICES_KEPT)
def _with_rotated_rows(tensor: RotatedRows) -> Float32Array:
    values = tensor.stored.read(slice(None)).astype(np.float64)
    return np.ascontiguousarray(tensor.basis.turned(values.T).T.astype(np.float32))


def can_be_rotated(model: Model) -> bool:
    """Whether all that reads a model's residual stream, or adds to it, is known."""
    return all(
        _known(spec.name) and (spec.role == "rope" or not (spec.plus or spec.derive or spec.stored))
        for spec in model.specs
    )


def _known(name: str) -> bool:
    found = IN_LAYER.fullmatch(name)
    if found is None:
        return name in (EMBEDDING, OUTPUT_NORM, OUTPUT) or name.startswith("rope_")
    return found[2] in BIASED or (found[3] == "weight" and found[2] in (*READERS, *OTHERS))


def has_own_output(model: Model) -> bool:
    """Whether the output layer isn't tied to the embeddings."""
    return any(spec.name == OUTPUT for spec in model.specs)


def is_rotated(metadata: Metadata) -> bool:
    """Whether a file's keys say that this rule made it."""
    return KEY in metadata and metadata[KEY].data == RULE


def rotated(model: Model) -> Model:
    """Return a model that `can_be_rotated` in another basis; a tied one gets an output layer of its own."""
    specs = list(model.specs)
    if not has_own_output(model):
        embedding = next(spec for spec in specs if spec.name == EMBEDDING)
        specs.append(replace(embedding, source="lm_head.weight", name=OUTPUT, role="output"))
    metadata = {**model.metadata, KEY: string(RULE)}
    tensors = None if model.tensors is None else _Tensors(model, model.tensors, specs).rotated()
    return replace(model, specs=specs, tensors=tensors, metadata=metadata)


class _Tensors:
    """The tensors of a model, to be rotated."""

    def __init__(self, model: Model, tensors: Mapping[str, SourceTensor], specs: list[TensorSpec]) -> None:
        self.tensors, self.specs = tensors, {spec.name: spec for spec in specs}
        self.hidden = Basis(self.specs[EMBEDDING].shape[-1])
        architecture = model.metadata[Keys.General.ARCHITECTURE].data
        head_size = model.metadata[Keys.Attention.VALUE_LENGTH.format(arch=architecture)].data
        assert isinstance(head_size, int)
        self.head = Basis(head_size)

    def rotated(self) -> dict[str, SourceTensor]:
        turned = {spec.source: self._rotated(name) for name, spec in self.specs.items() if not _free(spec)}
        return {**self.tensors, **turned}

    def _stored(self, name: str) -> SourceTensor:
        source = self.specs[name].source
        return self.tensors[source if source in self.tensors else self.specs[EMBEDDING].source]

    def _rotated(self, name: str) -> SourceTensor:
        stored = self._stored(name)
        if name == EMBEDDING:
            return RotatedColumns(stored, self.hidden)
        if name == OUTPUT:
            return RotatedColumns(stored, self.hidden, self._factors(OUTPUT_NORM))
        if name == OUTPUT_NORM:
            return _ones(stored)
        found = IN_LAYER.fullmatch(name)
        assert found is not None
        number, module, kind = found.groups()
        if module in READERS:
            return _ones(stored)
        norm = next((norm for norm, readers in READERS.items() if module in readers), None)
        by_heads = f"blk.{number}.attn_v.weight" in self.specs
        if kind == "weight" and norm is not None:
            stored = RotatedColumns(stored, self.hidden, self._factors(f"blk.{number}.{norm}.weight"))
        if module == "attn_v":
            stored = RotatedRows(stored, self.head) if kind == "weight" else RotatedColumns(stored, self.head)
        if module == "attn_output" and kind == "weight" and by_heads:
            stored = RotatedColumns(stored, self.head)
        if module in ADDING:
            stored = RotatedRows(stored, self.hidden) if kind == "weight" else RotatedColumns(stored, self.hidden)
        return stored

    def _factors(self, name: str) -> Float32Array:
        stored = self._stored(name)
        ones = np.ones(stored.shape, np.float32)
        return ones if stored.described else stored.read(slice(None)).reshape(-1)


def _free(spec: TensorSpec) -> bool:
    """Whether a tensor is the same in any basis."""
    found = IN_LAYER.fullmatch(spec.name)
    return spec.data is not None or (found is not None and found[2] in OTHERS) or spec.role == "rope"


def _ones(stored: SourceTensor) -> SourceTensor:
    return ComputedTensor(stored.name, stored.shape, stored, np.ones_like)
