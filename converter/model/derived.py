"""Tensors that a graph needs in another form than checkpoints store, and the way back of each form.

The columns or rows are in another order, rows of one tensor are several, or shape or values are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tritgguf.converter.core.stacks import common_dtype
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Float32Array,
    Floats,
    Following,
    RowIndices,
    SourceTensor,
    row_numbers,
)


@dataclass(frozen=True)
class Derivation:
    """`made` makes the graph's tensor of the checkpoint's, `undone` the checkpoint's of the graph's."""

    made: Callable[[SourceTensor], SourceTensor]
    undone: Callable[[SourceTensor], SourceTensor]


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


def reshaped(name: str, stored_shape: tuple[int, ...], shape: tuple[int, ...]) -> Derivation:
    """Return the derivation of a tensor with the same values and rows in another shape."""
    made, undone = (partial(ComputedTensor, name, new, compute=lambda values: values) for new in (shape, stored_shape))
    return Derivation(made, undone)


@dataclass(frozen=True)
class ReorderedColumns(Following):
    """A tensor with its columns in another order, in which runs of `run` neighbours stay together."""

    columns: RowIndices
    run: int

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return np.ascontiguousarray(self.stored.read(rows)[:, self.columns])

    def floats(self, rows: slice | RowIndices) -> Floats:
        words, dtype = self.stored.floats(rows)
        return Floats(np.ascontiguousarray(words[:, self.columns]), dtype)

    @property
    def coded(self) -> ReorderedCodes | None:
        coded = self.stored.coded
        return None if coded is None else ReorderedCodes.of(coded, self.columns, self.run)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        return None if self.coded is None else self.coded.read_codes(rows)


@dataclass(frozen=True)
class ReorderedCodes(CodedTensor):
    """A tensor of codes with its columns in another order, which keeps groups of `group` neighbours together."""

    original: CodedTensor
    columns: RowIndices

    @classmethod
    def of(cls, coded: CodedTensor, columns: RowIndices, run: int) -> ReorderedCodes:
        """Return the tensor with its columns in that order, in which runs of `run` neighbours stay together."""
        group = coded.group if coded.group == coded.shape[-1] else math.gcd(coded.group, run)
        return cls(coded.name, coded.dtype, coded.shape, group, coded, coded, columns)

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
    if isinstance(source, CodedTensor):
        return ReorderedCodes.of(source, columns, run)
    return ReorderedColumns(source, columns, run)


def reordered_columns(columns: RowIndices, run: int) -> Derivation:
    """Return the derivation of a tensor whose columns are numbered as in `with_columns`."""
    places = np.argsort(columns)
    return Derivation(lambda stored: with_columns(stored, columns, run), lambda made: with_columns(made, places, run))


@dataclass(frozen=True)
class PickedRows(SourceTensor):
    """The rows `numbers` of the matrix `stored`, in this order, as a tensor of their own."""

    name: str
    stored: SourceTensor
    numbers: RowIndices

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.numbers), *self.stored.shape[1:])

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.stored.dtype

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes * len(self.numbers) // self.stored.shape[0]

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.stored.read(self.numbers[rows])

    def floats(self, rows: slice | RowIndices) -> Floats:
        return self.stored.floats(self.numbers[rows])

    @property
    def coded(self) -> PickedCodes | None:
        coded = self.stored.coded
        return None if coded is None else PickedCodes(self.name, self.dtype, self.shape, coded.group, self, coded)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        return self.stored.read_codes(self.numbers[rows])

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return [part for run in self.runs(rows) for part in self.stored.on_disk(run)]

    def runs(self, rows: slice | RowIndices) -> list[slice]:
        """Return the neighbouring rows of `stored` that `rows` are, one run after the other."""
        return runs_of_neighbours(self.numbers[rows])


@dataclass(frozen=True)
class PickedCodes(CodedTensor):
    """The codes and scales of picked rows of the tensor `original`."""

    stored: PickedRows
    original: CodedTensor

    @property
    def levels(self) -> int:
        return self.original.levels

    def scales(self, rows: slice) -> Float32Array:
        empty: Float32Array = np.empty((0, self.shape[-1] // self.group), np.float32)
        return np.concatenate([empty, *(self.original.scales(run) for run in self.stored.runs(rows))])

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        return self.original.read_codes(self.stored.numbers[rows])


@dataclass(frozen=True)
class MergedRows(SourceTensor):
    """A matrix whose rows are those of `parts`: row i is row `places[i]` of the parts one after the other."""

    name: str
    parts: Sequence[SourceTensor]
    places: RowIndices

    @classmethod
    def of(cls, name: str, parts: Sequence[SourceTensor], numbers: Sequence[RowIndices]) -> MergedRows:
        """Return the matrix that `PickedRows` took the parts from: rows `numbers[i]` of it are the rows of part i."""
        return cls(name, parts, np.argsort(np.concatenate(numbers)))

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.places), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return common_dtype(self.parts)

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values: Float32Array = np.empty((len(row_numbers(rows, len(self.places))), self.shape[-1]), np.float32)
        for part, here, numbers in self._by_part(rows):
            values[here] = part.read(numbers)
        return values

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        shares = [(part, runs_of_neighbours(numbers)) for part, _, numbers in self._by_part(rows)]
        return [stored for part, runs in shares for run in runs for stored in part.on_disk(run)]

    def require_unchanged(self) -> None:
        for part in self.parts:
            part.require_unchanged()

    def _by_part(self, rows: slice | RowIndices) -> Iterator[tuple[SourceTensor, RowIndices, RowIndices]]:
        """Yield the parts that have some of `rows`: which of these, and their numbers in the part."""
        wanted = self.places[row_numbers(rows, len(self.places))]
        first = 0
        for part in self.parts:
            here = np.flatnonzero((first <= wanted) & (wanted < first + part.shape[0]))
            if len(here):
                yield part, here, wanted[here] - first
            first += part.shape[0]


def runs_of_neighbours(numbers: RowIndices) -> list[slice]:
    """Return the rows of these numbers as slices, in their order.

    >>> runs_of_neighbours(np.array([7, 8, 9, 2, 3]))
    [slice(7, 10, None), slice(2, 4, None)]
    """
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
