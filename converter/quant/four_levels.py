"""Four-level grids: in each group, all values are among -1, 0, 1 and 2 times one scale, which may be negative.

Symmetric 2-bit quantizers, such as GPTQ's, make such weights: {-2, -1, 0, 1} · s is {-1, 0, 1, 2} · -s. Values are
compared for equality: rounding to bf16 or fp16 maps twice a value to twice the rounded value.
"""

from __future__ import annotations

import numpy as np

from tritgguf.converter.core.floats import widened
from tritgguf.converter.core.tensors import CodedRows, Float32Array, Floats

LEVELS = 4
GROUPS = (256, 128, 64, 32)  # narrower groups fit no type
FEW = 64  # groups: enough to see that nearly any tensor has no such grid


def widest_group(values: Float32Array, n_columns: int, at_most: int | None = None) -> int | None:
    """Return the widest groups, a row or one of GROUPS, that have such a grid in all of these rows; None if none have.

    `values` is (n_rows, n_columns); groups wider than `at_most` aren't tried.
    """
    narrowest = next((group for group in reversed(GROUPS) if n_columns % group == 0), n_columns)
    if signed_scales(values.reshape(-1, narrowest)[:FEW]) is None:
        return None
    for group in (n_columns, *GROUPS):
        fits = n_columns % group == 0 and group <= (at_most or n_columns)
        if fits and signed_scales(values.reshape(-1, group)) is not None:
            return group
    return None


def signed_scales(groups: Float32Array) -> Float32Array | None:
    """Return the scale of each group, (n_groups,), of groups (n_groups, group); None if one has no such grid.

    A group without a value of twice its scale is ternary; its scale is then above zero.
    """
    high, low = groups.max(axis=1), groups.min(axis=1)
    largest = np.maximum(high, -low)
    magnitudes = np.abs(groups)
    halved = ((magnitudes != 0) & (magnitudes != largest[:, None])).any(axis=1)
    if (halved & (high == -low)).any():  # five levels
        return None
    scales: Float32Array = np.where(halved, np.where(high > -low, high, low) / 2, largest).astype(np.float32)
    off = (magnitudes != 0) & (magnitudes != largest[:, None]) & (magnitudes != np.abs(scales)[:, None])
    if off.any():
        return None
    return scales


def code_on_four_levels(rows: Floats, group: int) -> CodedRows | None:
    """Return codes from -1 to 2 and scales of rows whose every group of `group` columns has such a grid; else None."""
    values = widened(rows)
    groups = values.reshape(-1, group)
    scales = signed_scales(groups)
    if scales is None:
        return None
    codes = np.divide(groups, scales[:, None], out=np.zeros_like(groups), where=scales[:, None] != 0).astype(np.int8)
    return CodedRows(codes.reshape(values.shape), scales.reshape(len(values), -1), group)
