"""absmean: scale = mean|w| of the group, code = clip(round(w / scale), -1, 1).

The rule of BitNet b1.58 (https://arxiv.org/abs/2402.17764), here per group as the 14B seed was made. |w / scale| rounds
to 1 or more exactly where |w| > scale / 2.
"""

import math

import numpy as np

from tritgguf.converter.codec import fp16
from tritgguf.converter.kernels import Kernel
from tritgguf.converter.method import Method, code_beyond
from tritgguf.converter.tensors import CodedRows, Float32Array

LANES = 16  # partial sums, each of every 16th value, then added in halves: the order is part of the rule


def absmean(rows: Float32Array, group: int) -> CodedRows:
    """Code float32 rows, shape (n_rows, n_columns), by their groups' mean magnitude, a float32 scale."""
    means = mean_magnitudes(rows.reshape(-1, group)).reshape(len(rows), -1)
    return code_beyond(rows, means / np.float32(2), means, group)


def code_absmean(rows: Float32Array, group: int) -> CodedRows:
    """Code rows likewise; the scale is stored as fp16, and one below fp16's range stands for zero."""
    means = mean_magnitudes(rows.reshape(-1, group)).reshape(len(rows), -1)
    return code_beyond(rows, means / np.float32(2), fp16(means), group)


def mean_magnitudes(groups: Float32Array) -> Float32Array:
    """Return mean|w| of each group, shape (n_groups,), of values of (n_groups, group), summed in float32."""
    n_groups, group = groups.shape
    means: Float32Array = np.empty(n_groups, np.float32)
    if group % LANES == 0 and MEANS(groups, means) is not None:
        return means
    with np.errstate(over="ignore"):
        sums = _added_up(np.abs(groups).reshape(n_groups, -1, math.gcd(group, LANES)))
    np.divide(sums, np.float32(group), out=means)
    return means


def _added_up(magnitudes: Float32Array) -> Float32Array:
    sums: Float32Array = magnitudes[:, 0].copy()
    for step in range(1, magnitudes.shape[1]):
        sums += magnitudes[:, step]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def _means(groups: Float32Array, means: Float32Array) -> int:
    sums = np.empty(LANES, np.float32)
    for number in range(len(groups)):
        values = groups[number]
        sums[:] = 0
        for step in range(0, len(values), LANES):
            for lane in range(LANES):
                sums[lane] += abs(values[step + lane])
        half = LANES // 2
        while half:
            for lane in range(half):
                sums[lane] += sums[half + lane]
            half //= 2
        means[number] = sums[0] / np.float32(len(values))
    return 0


MEANS = Kernel(_means)
METHOD = Method("absmean", code_absmean)
