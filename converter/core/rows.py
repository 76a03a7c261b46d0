"""Which rows of a tensor: slices, numbers, and chunks of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

RowIndices: TypeAlias = npt.NDArray[np.int64]

CHUNK_VALUES = 1 << 19  # 2 MB of float32, which stay in the cache


def row_numbers(rows: slice | RowIndices, n_rows: int) -> RowIndices:
    """Return the row numbers that `rows` selects from `n_rows` rows, int64 (n_selected,)."""
    return np.arange(*rows.indices(n_rows)) if isinstance(rows, slice) else np.ascontiguousarray(rows)


def span(rows: slice | RowIndices, n_rows: int) -> slice:
    """Return the smallest slice of `n_rows` rows that contains all of `rows`."""
    if isinstance(rows, slice):
        return slice(*rows.indices(n_rows)[:2])
    return slice(int(rows.min(initial=n_rows)), int(rows.max(initial=-1)) + 1)


def row_chunks(
    shape: tuple[int, ...], rows: slice = slice(None), *, n_values: int | None = None, first: int | None = None
) -> Iterator[slice]:
    """Yield slices over the rows of a tensor of `shape`, or over `rows` of it, of about `n_values` values each.

    `n_values` is CHUNK_VALUES by default; `first` is another number for the first slice. A one-dimensional tensor is
    one row.
    """
    start, end, _ = rows.indices(math.prod(shape[:-1]))
    wanted = first or n_values or CHUNK_VALUES
    while start < end:
        stop = min(start + max(1, wanted // max(shape[-1], 1)), end)
        yield slice(start, stop)
        start, wanted = stop, n_values or CHUNK_VALUES
