"""A tensor of three dimensions whose matrices are tensors of their own on disk, such as a layer's experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    Float32Array,
    Floats,
    PackedRows,
    RowIndices,
    SourceTensor,
    row_numbers,
)

MIXED = "mixed"


def common_dtype(parts: Sequence[SourceTensor]) -> str:
    """Return the dtype that all parts have, or "mixed"."""
    dtypes = {part.dtype for part in parts}
    return dtypes.pop() if len(dtypes) == 1 else MIXED


@dataclass(frozen=True)
class Stack(SourceTensor):
    """Matrices of one shape as one tensor, (n_matrices, n_rows, n_columns); its rows are theirs, one after the other.

    Each matrix may be stored in its own way. `dtype` is what they have in common, or "mixed".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[SourceTensor] = field(repr=False)

    @classmethod
    def of(cls, name: str, parts: Sequence[SourceTensor]) -> Stack:
        """Return the stack of these matrices, of which there is at least one."""
        return cls(name, common_dtype(parts), (len(parts), *parts[0].shape), parts)

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)

    @property
    def kernel_packing(self) -> str | None:
        """The packing that all matrices have; `read_packed` then reads rows of one of them."""
        packings = {part.kernel_packing for part in self.parts}
        return packings.pop() if len(packings) == 1 else None

    def matrices(self) -> Sequence[SourceTensor]:
        return self.parts

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values = [part.read(some) for part, some in self._runs(rows)]
        return values[0] if len(values) == 1 else np.concatenate([np.empty((0, self.shape[-1]), np.float32), *values])

    def floats(self, rows: slice | RowIndices) -> Floats:
        found = [part.floats(some) for part, some in self._runs(rows)] if self.dtype in FLOAT_DTYPES else []
        if not found:
            return super().floats(rows)
        words = found[0].words if len(found) == 1 else np.concatenate([floats.words for floats in found])
        return Floats(words, found[0].dtype)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        found = [part.read_codes(some) for part, some in self._runs(rows)]
        coded = [part for part in found if part is not None]
        if len(coded) < len(found) or len({part.group for part in coded}) != 1:
            return None
        if len(coded) == 1:
            return coded[0]
        codes, scales = (np.concatenate(arrays) for arrays in zip(*((c.codes, c.scales) for c in coded), strict=True))
        return CodedRows(codes, scales, coded[0].group)

    def read_packed(self, rows: slice | RowIndices) -> PackedRows | None:
        """Return rows of one matrix as they are stored; None for rows of several, or without a `kernel_packing`."""
        runs = list(self._runs(rows))
        return runs[0][0].read_packed(runs[0][1]) if len(runs) == 1 else None

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return [stored for part, some in self._runs(rows) for stored in part.on_disk(some)]

    def require_unchanged(self) -> None:
        for part in self.parts:
            part.require_unchanged()

    def _runs(self, rows: slice | RowIndices) -> Iterator[tuple[SourceTensor, slice | RowIndices]]:
        """Yield matrices and rows of each, in the order of `rows`."""
        n_rows = self.shape[-2]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(math.prod(self.shape[:-1]))
            while start < stop:
                number, first = divmod(start, n_rows)
                end = min(n_rows, first + stop - start)
                yield self.parts[number], slice(first, end)
                start += end - first
            return
        wanted = row_numbers(rows, math.prod(self.shape[:-1]))
        owners = wanted // n_rows
        for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(owners)) + 1):
            if len(run):
                yield self.parts[int(owners[run[0]])], wanted[run] % n_rows
