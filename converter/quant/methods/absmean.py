"""absmean: scale = mean|w| of the group, code = clip(round(w / scale), -1, 1).

The rule of BitNet b1.58 (https://arxiv.org/abs/2402.17764), here per group as the 14B seed was made. |w / scale| rounds
to 1 or more exactly where |w| > scale / 2.
"""

import math

import numpy as np

from tritgguf.converter.core.floats import widened
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.quant.codec import fp16
from tritgguf.converter.quant.method import Method, code_beyond

LANES = 16  # partial sums, each of every 16th value, then added in halves: the order is part of the rule
FP16_ZERO = 2.0**-25  # what fp16 rounds to zero, and anything smaller


def absmean(rows: Float32Array, group: int) -> CodedRows:
    """Code float32 rows, shape (n_rows, n_columns), by their groups' mean magnitude, a float32 scale."""
    return _coded(Floats.of(rows), group, 0.0)


def code_absmean(rows: Floats, group: int) -> CodedRows:
    """Code rows likewise; the scale is stored as fp16, and one below fp16's range stands for zero."""
    coded = _coded(rows, group, FP16_ZERO)
    return CodedRows(coded.codes, fp16(coded.scales), group)


def _coded(rows: Floats, group: int, least: float) -> CodedRows:
    """Code rows by their groups' mean magnitude; means of `least` or less stand for zero."""
    n_rows, n_columns = rows.words.shape
    codes: Codes = np.empty((n_rows, n_columns), np.int8)
    means: Float32Array = np.empty((n_rows, n_columns // group), np.float32)
    if group % LANES == 0 and ABSMEAN(rows.words, rows.kind, means.size, group, least, codes, means) is not None:
        return CodedRows(codes, means, group)
    values = widened(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        magnitudes = np.abs(values).reshape(means.size, -1, math.gcd(group, LANES))
        means = np.divide(_added_up(magnitudes), np.float32(group)).reshape(means.shape)
        used = np.where(means > least, means, np.float32(0))
        return CodedRows(code_beyond(values, used / np.float32(2), used, group).codes, means, group)


def _added_up(magnitudes: Float32Array) -> Float32Array:
    sums: Float32Array = magnitudes[:, 0].copy()
    for step in range(1, magnitudes.shape[1]):
        sums += magnitudes[:, step]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


ABSMEAN = Kernel("absmean", WORDS, int, int, int, float, np.int8, np.float32)
METHOD = Method("absmean", code_absmean)
