"""Is a float tensor already ternary: every value of a group in {-a, 0, a}?

One rule covers every layout that a block type can hold: the groups may share their a over a block of columns, over a
row, over a shard of rows or over the whole tensor. Values are compared for equality: rounding to bf16 or fp16 maps
equal values to equal values, so it never takes a tensor off its grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritgguf.converter.codec import fp16
from tritgguf.converter.tensors import CodedRows, Float32Array


@dataclass(frozen=True)
class Grid:
    """A tensor's grid: over what one a extends, how much fp16 changes it (relative, at most), the share of zeros."""

    extent: str
    fp16_error: float
    zeros: float

    @property
    def exact(self) -> bool:
        return self.fp16_error == 0


def code_on_grid(rows: Float32Array, group: int) -> CodedRows | None:
    """Return the rows as codes and scales if every group lies on a {-a, 0, a} grid, else None."""
    groups = rows.reshape(len(rows), -1, group)
    scales = np.abs(groups).max(axis=-1)
    codes = np.sign(groups)
    if not np.array_equal(codes * scales[..., None], groups):
        return None
    return CodedRows(codes.astype(np.int8).reshape(rows.shape), scales, group)


def describe_grid(scales: Float32Array, n_zeros: int, n_columns: int) -> Grid:
    """Describe a tensor found on a grid, from its scales per group, shape (n_rows, n_groups)."""
    used = scales[scales > 0]
    error = float((np.abs(fp16(used) - used) / used).max()) if used.size else 0.0
    return Grid(_extent(scales), error, n_zeros / (len(scales) * n_columns))


def _extent(scales: Float32Array) -> str:
    """Name the largest unit over which all groups that aren't all zero share one scale."""
    if len(np.unique(scales[scales > 0])) <= 1:
        return "tensor"
    per_row = scales.max(axis=1)
    if not ((scales == per_row[:, None]) | (scales == 0)).all():
        return "block"
    used = per_row[per_row > 0]
    n_shards = 1 + int((used[1:] != used[:-1]).sum())
    return "row shard" if n_shards <= len(used) // 2 else "row"
