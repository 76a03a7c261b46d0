"""mse: the scale and codes of least squared error, found exactly.

For a scale d the best codes are sign(w)·[|w| > d/2], so the weights with a nonzero code are the k largest magnitudes,
for some k. For these the best d is their mean, which lowers the squared error by (their sum)² / k. At the best k, half
the mean is a threshold that keeps exactly these k magnitudes. Numpy tries every k, the kernel only those that can be
the best. With an importance matrix the error of each column is weighted (weighted_fit.py).
"""

from functools import partial

import numpy as np

from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.quant.codec import fp16
from tritgguf.converter.quant.method import Method, quantize_by_threshold
from tritgguf.converter.quant.weighted_fit import fitted

STEP, LARGEST_GROUP = 32, 256  # the kernel takes groups of a multiple of STEP columns, at most LARGEST_GROUP


def quantize_mse(rows: Floats, group_size: int) -> CodedRows:
    """Quantize stored rows, (n_rows, n_columns), with the least squared error per group; scales are fp16 values."""
    n_rows, n_columns = rows.words.shape
    codes: Codes = np.empty((n_rows, n_columns), np.int8)
    scales: Float32Array = np.empty((n_rows, n_columns // group_size), np.float32)
    suits = group_size % STEP == 0 and group_size <= LARGEST_GROUP
    if suits and MSE(rows.words, rows.kind, scales.size, group_size, codes, scales) is not None:
        return CodedRows(codes, scales, group_size)
    values, all_finite = checked(rows)
    if not all_finite:
        return CodedRows(codes, np.full_like(scales, np.nan), group_size)
    scales = fp16(best_scales(values.reshape(-1, group_size)).reshape(scales.shape))
    return quantize_by_threshold(values, scales / np.float32(2), scales, group_size)


def best_scales(groups: Float32Array) -> Float32Array:
    """Return each group's scale of least squared error, float32 (n_groups,), for values (n_groups, group_size)."""
    descending = -np.sort(-np.abs(groups), axis=1)
    sums = np.cumsum(descending, axis=1, dtype=np.float64)
    means = sums / np.arange(1, groups.shape[1] + 1)
    largest_left_out = np.pad(descending[:, 1:], ((0, 0), (0, 1)))
    reproduced = (descending > means / 2) & (largest_left_out <= means / 2)
    best = np.where(reproduced, sums * means, -1).argmax(axis=1)
    chosen: Float32Array = means[np.arange(len(groups)), best].astype(np.float32)
    return chosen


MSE = Kernel("mse", WORDS, int, int, int, np.int8, np.float32)
METHOD = Method("mse", quantize_mse, partial(fitted, 3))
