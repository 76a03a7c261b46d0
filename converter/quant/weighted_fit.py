"""Codes and scale of least weighted squared error in each group, found exactly.

For weights w with importance h and codes q, the best scale is d = Σ h q w / Σ h q², which lowers the error by
(Σ h q w)² / Σ h q². For a scale d the best codes of three levels are sign(w)·[|w| > d/2]; on the four levels -1, 0, 1
and 2 a weight of the scale's sign gets 2 where |w| > 3d/2. So as d falls from infinity to 0, codes only grow, one
**step** after another: a weight leaves 0 when d reaches 2|w|, and goes from 1 to 2 at 2|w|/3. Both steps add h|w| to
the first sum; the first adds h to the second one, the other 3h. The best d is after one of these steps; all are tried,
on four levels with either sign of the scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.quant.codec import fp16

LARGEST_GROUP = 256  # that the kernel takes
NO_STEP = np.float32(-1)
Float64Array = npt.NDArray[np.float64]


def fitted(levels: int, rows: Floats, group_size: int, importance: Float32Array) -> CodedRows:
    """Quantize stored rows, (n_rows, n_columns), to 3 or 4 levels; scales are fp16 values.

    `importance` is float32 (n_columns,), zero or more; a group in which it is 0 everywhere is fitted without weights. A
    group with a NaN or Inf has the scale NaN.
    """
    n_rows, n_columns = rows.words.shape
    codes: Codes = np.empty((n_rows, n_columns), np.int8)
    scales: Float32Array = np.empty((n_rows, n_columns // group_size), np.float32)
    weights = _usable(importance.reshape(-1, group_size))
    arrays = (weights, len(weights), levels, codes, scales)
    if group_size <= LARGEST_GROUP and FIT(rows.words, rows.kind, scales.size, group_size, *arrays) is not None:
        return CodedRows(codes, scales, group_size)
    values, all_finite = checked(rows)
    if not all_finite:
        return CodedRows(codes, np.full_like(scales, np.nan), group_size)
    groups, of_groups = values.reshape(-1, group_size), np.tile(weights, (n_rows, 1))
    best, gains = _best_scales(groups, of_groups, levels)
    sign = np.ones_like(best)
    if levels == 4:
        other, other_gains = _best_scales(-groups, of_groups, levels)
        sign = np.where(other_gains > gains, np.float32(-1), np.float32(1))
        best = np.where(sign < 0, other, best)
    best = fp16(best)
    codes = _codes(groups * sign[:, None], best[:, None], levels).reshape(codes.shape)
    return CodedRows(codes, (best * sign).reshape(scales.shape), group_size)


def _usable(weights: Float32Array) -> Float32Array:
    """Return the importance of groups, (n_groups, group), with 1 everywhere in a group that has none."""
    return np.ascontiguousarray(np.where(weights.any(axis=1, keepdims=True), weights, np.float32(1)), np.float32)


def _best_scales(groups: Float32Array, weights: Float32Array, levels: int) -> tuple[Float32Array, Float64Array]:
    """Return each group's best scale above zero, float32 (n_groups,), and by how much it lowers the error."""
    magnitudes = np.abs(groups)
    h = weights.astype(np.float64)
    places, first, second = magnitudes, h * magnitudes, h
    if levels == 4:
        grows = groups > 0
        places = np.concatenate([magnitudes, np.where(grows, magnitudes / np.float32(3), NO_STEP)], axis=1)
        first = np.concatenate([first, np.where(grows, first, 0)], axis=1)
        second = np.concatenate([second, np.where(grows, 3 * second, 0)], axis=1)
    order = np.argsort(-places, axis=1, kind="stable")
    products = np.cumsum(np.take_along_axis(first, order, axis=1), axis=1)
    squares = np.cumsum(np.take_along_axis(second, order, axis=1), axis=1)
    scales = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    gains = products * scales
    best = gains.argmax(axis=1)[:, None]
    chosen: Float32Array = np.take_along_axis(scales, best, axis=1)[:, 0].astype(np.float32)
    return chosen, np.take_along_axis(gains, best, axis=1)[:, 0]


def _codes(groups: Float32Array, scales: Float32Array, levels: int) -> Codes:
    """Return the codes of groups, (n_groups, group), for scales of zero or more, (n_groups, 1): 0 where that is 0."""
    half = np.where(scales > 0, scales / np.float32(2), np.float32(np.inf))
    codes: Codes = np.subtract(groups > half, groups < -half, dtype=np.int8)
    if levels == 4:
        codes += groups > np.float32(3) * half
    return codes


FIT = Kernel("weighted_fit", WORDS, int, int, int, np.float32, int, int, np.int8, np.float32)
