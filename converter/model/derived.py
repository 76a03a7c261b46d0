"""Tensors that a graph needs in another form than checkpoints store: other columns, shape or values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Float32Array,
    Floats,
    RowIndices,
    SourceTensor,
)


@dataclass(frozen=True)
class ComputedTensor(SourceTensor):
    """A tensor of `shape` with as many rows as `stored`, whose values `compute` makes of the stored ones in float32."""

    name: str
    shape: tuple[int, ...]
    stored: SourceTensor
    compute: Callable[[Float32Array], Float32Array]
    dtype: str = "F32"

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.compute(self.stored.read(rows))

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)


@dataclass(frozen=True)
class ReorderedColumns(SourceTensor):
    """A tensor of floats with its columns in another order."""

    stored: SourceTensor
    columns: RowIndices

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.stored.shape

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.stored.dtype

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return np.ascontiguousarray(self.stored.read(rows)[:, self.columns])

    def floats(self, rows: slice | RowIndices) -> Floats:
        words, dtype = self.stored.floats(rows)
        return Floats(np.ascontiguousarray(words[:, self.columns]), dtype)

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)


@dataclass(frozen=True)
class ReorderedCodes(CodedTensor):
    """A tensor of codes with its columns in another order, which keeps groups of `group` neighbours together."""

    original: CodedTensor
    columns: RowIndices

    @property
    def levels(self) -> int:
        return self.original.levels

    def scales(self, rows: slice) -> Float32Array:
        return self._reordered(self.original.scales(rows))

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        coded = self.original.read_codes(rows)
        codes = np.ascontiguousarray(coded.codes[:, self.columns])
        return CodedRows(codes, self._reordered(coded.scales), self.group)

    def _reordered(self, scales: Float32Array) -> Float32Array:
        return np.ascontiguousarray(scales[:, self.columns[:: self.group] // self.original.group])


def with_columns(source: SourceTensor, columns: RowIndices, run: int) -> SourceTensor:
    """Return a tensor whose columns are those of `source` numbered `columns`, (n_columns,).

    They move in runs of `run` neighbours. So groups of columns with one scale stay whole, or fall into smaller ones.
    """
    if (coded := source.coded) is None:
        return ReorderedColumns(source, columns)
    group = coded.group if coded.group == coded.shape[-1] else math.gcd(coded.group, run)
    return ReorderedCodes(coded.name, coded.dtype, coded.shape, group, coded, coded, columns)
