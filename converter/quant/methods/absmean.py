"""absmean: scale = mean|w| of the group, code = clip(round(w / scale), -1, 1).

This is the rule of BitNet b1.58 (https://arxiv.org/abs/2402.17764), applied per group and not per tensor. A code isn't
zero exactly if |w| > scale / 2, since round() takes halves to even.
"""

import math

import numpy as np

from tritgguf.converter.core.floats import LANES, lane_sums, widened
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.quant.codec import fp16
from tritgguf.converter.quant.method import Method, quantize_by_threshold

FP16_ZERO = 2.0**-25  # fp16 rounds this and anything smaller to zero


def absmean(rows: Float32Array, group_size: int) -> CodedRows:
    """Quantize float32 rows, (n_rows, n_columns), with float32 scales: each group's mean magnitude."""
    return _quantize(Floats.of(rows), group_size, 0.0)


def quantize_absmean(rows: Floats, group_size: int) -> CodedRows:
    """Quantize stored rows, (n_rows, n_columns), with fp16 scales; codes are 0 if fp16 rounds the scale to 0."""
    coded = _quantize(rows, group_size, FP16_ZERO)
    return CodedRows(coded.codes, fp16(coded.scales), group_size)


def _quantize(rows: Floats, group_size: int, least: float) -> CodedRows:
    """Quantize rows with each group's mean magnitude as its scale; all codes are 0 if that is `least` or less."""
    n_rows, n_columns = rows.words.shape
    codes: Codes = np.empty((n_rows, n_columns), np.int8)
    means: Float32Array = np.empty((n_rows, n_columns // group_size), np.float32)
    whole_lanes = group_size % LANES == 0
    if whole_lanes and ABSMEAN(rows.words, rows.kind, means.size, group_size, least, codes, means) is not None:
        return CodedRows(codes, means, group_size)
    values = widened(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        magnitudes = np.abs(values).reshape(means.size, -1, math.gcd(group_size, LANES))
        means = np.divide(lane_sums(magnitudes), np.float32(group_size)).reshape(means.shape)
        used = np.where(means > least, means, np.float32(0))
        codes = quantize_by_threshold(values, used / np.float32(2), used, group_size).codes
        return CodedRows(codes, means, group_size)


ABSMEAN = Kernel("absmean", WORDS, int, int, int, float, np.int8, np.float32)
METHOD = Method("absmean", quantize_absmean)
