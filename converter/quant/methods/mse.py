"""mse: the scale and codes of least squared error, found exactly.

For a scale d the best codes are sign(w)·[|w| > d/2], so the kept values are the k largest magnitudes for some k, and
for these d = mean of them, which lowers the error by (sum of them)² / k. The best k reproduces itself: half its mean
keeps just these k. Numpy looks at every k, the kernel at those that may be it. (docs: quality of ternarization.)
"""

import numpy as np

from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.quant.codec import fp16
from tritgguf.converter.quant.method import Method, code_beyond

STEP, LARGEST_GROUP = 32, 256  # what the kernel's groups are multiples of, and their most


def code_mse(rows: Floats, group: int) -> CodedRows:
    """Code rows, shape (n_rows, n_columns), with least squared error per group; the scale is stored as fp16."""
    n_rows, n_columns = rows.words.shape
    codes: Codes = np.empty((n_rows, n_columns), np.int8)
    scales: Float32Array = np.empty((n_rows, n_columns // group), np.float32)
    suits = group % STEP == 0 and group <= LARGEST_GROUP
    if suits and MSE(rows.words, rows.kind, scales.size, group, codes, scales) is not None:
        return CodedRows(codes, scales, group)
    values, all_finite = checked(rows)
    if not all_finite:
        return CodedRows(codes, np.full_like(scales, np.nan), group)
    scales = fp16(best_scales(values.reshape(-1, group)).reshape(scales.shape))
    return code_beyond(values, scales / np.float32(2), scales, group)


def best_scales(groups: Float32Array) -> Float32Array:
    """Return the scale of least squared error of each group, shape (n_groups,), of values of (n_groups, group)."""
    descending = -np.sort(-np.abs(groups), axis=1)
    sums = np.cumsum(descending, axis=1, dtype=np.float64)
    means = sums / np.arange(1, groups.shape[1] + 1)
    largest_left_out = np.pad(descending[:, 1:], ((0, 0), (0, 1)))
    reproduced = (descending > means / 2) & (largest_left_out <= means / 2)
    best = np.where(reproduced, sums * means, -1).argmax(axis=1)
    chosen: Float32Array = means[np.arange(len(groups)), best].astype(np.float32)
    return chosen


MSE = Kernel("mse", WORDS, int, int, int, np.int8, np.float32)
METHOD = Method("mse", code_mse)
