"""mse: the scale and codes of least squared error, found exactly.

For a scale d the best codes are sign(w)·[|w| > d/2], so the kept values are the k largest magnitudes for some k, and
for these d = mean of them, which lowers the error by (sum of them)² / k. The best k reproduces itself: half its mean
keeps just these k. Numpy looks at every k. (docs: quality of ternarization.)
"""

import numpy as np
import numpy.typing as npt

from tritgguf.converter.codec import fp16
from tritgguf.converter.kernels import Kernel
from tritgguf.converter.method import Method, code_beyond
from tritgguf.converter.tensors import CodedRows, Float32Array

Float64Array = npt.NDArray[np.float64]

# Where a group's magnitudes lie between these, its largest and smallest no further apart than EXACT_RATIO, float64
# holds every sum of up to LARGEST_GROUP float32 values exactly, and float32 a mean with an error below MARGIN.
LEAST, MOST, EXACT_RATIO, LARGEST_GROUP, MARGIN = 1e-30, 1e30, 2.0**20, 256, 2.0**-15
LOW, HIGH, SUM, COUNT = range(4)
STEP = 16  # values that are looked at together


def code_mse(rows: Float32Array, group: int) -> CodedRows:
    """Code float32 rows, shape (n_rows, n_columns), with least squared error per group; the scale is stored as fp16."""
    scales = fp16(best_scales(rows.reshape(-1, group)).reshape(len(rows), -1))
    return code_beyond(rows, scales / np.float32(2), scales, group)


def best_scales(groups: Float32Array) -> Float32Array:
    """Return the scale of least squared error of each group, shape (n_groups,), of values of (n_groups, group)."""
    n_groups, group = groups.shape
    if group % STEP == 0 and group <= LARGEST_GROUP:
        brackets: Float64Array = np.empty((n_groups, 4), np.float64)
        scales: Float32Array = np.empty(n_groups, np.float32)
        if BRACKETS(groups, brackets) is not None and BEST(groups, brackets, scales) is not None:
            return scales
    descending = -np.sort(-np.abs(groups), axis=1)
    sums = np.cumsum(descending, axis=1, dtype=np.float64)
    means = sums / np.arange(1, group + 1)
    largest_left_out = np.pad(descending[:, 1:], ((0, 0), (0, 1)))
    reproduced = (descending > means / 2) & (largest_left_out <= means / 2)
    best = np.where(reproduced, sums * means, -1).argmax(axis=1)
    chosen: Float32Array = means[np.arange(n_groups), best].astype(np.float32)
    return chosen


def _brackets(groups: Float32Array, brackets: Float64Array) -> int:
    """Fill in two thresholds per group between which the best lies, and the sum and count of what exceeds the upper.

    Half the mean of what exceeds a threshold never falls as the threshold grows. So from 0 upwards and from half the
    largest magnitude downwards, a threshold is replaced by that half until it stays: none that reproduces itself lies
    beyond. MARGIN keeps float32's rounding harmless. Where sums might be rounded the bracket is everything.
    """
    bits, magnitudes = groups.view(np.uint32), np.empty(groups.shape[1], np.float32)
    extremes = np.empty(2, np.float32)
    extreme_bits = extremes.view(np.uint32)
    down, up, nothing, one = np.float32(0.5 - MARGIN), np.float32(0.5 + MARGIN), np.float32(0), np.float32(1)
    for number in range(len(groups)):
        largest_bits, smallest_bits = np.uint32(0), np.uint32(0xFFFFFFFF)
        for index in range(groups.shape[1]):
            magnitude_bits = bits[number, index] & np.uint32(0x7FFFFFFF)
            largest_bits = max(largest_bits, magnitude_bits)
            smallest_bits = min(smallest_bits, np.uint32(magnitude_bits - np.uint32(1)))  # 0 becomes the largest number
            magnitudes[index] = abs(groups[number, index])
        extreme_bits[0], extreme_bits[1] = largest_bits, smallest_bits + np.uint32(1)
        largest, smallest, bracket = extremes[0], extremes[1], brackets[number]
        bracket[LOW], bracket[HIGH], bracket[SUM], bracket[COUNT] = 0, largest, 0, 0
        if smallest < LEAST or largest > MOST or largest > smallest * EXACT_RATIO:
            continue
        low, high, n_low, n_high = nothing, largest / np.float32(2), nothing, nothing
        for _ in range(LARGEST_GROUP):
            low_sum, high_sum, n_low_before, n_high_before = nothing, nothing, n_low, n_high
            n_low, n_high = nothing, nothing
            for index in range(groups.shape[1]):
                magnitude = magnitudes[index]
                low_sum += magnitude if magnitude > low else nothing
                n_low += one if magnitude > low else nothing
                high_sum += magnitude if magnitude > high else nothing
                n_high += one if magnitude > high else nothing
            settled = n_low == n_low_before and n_high == n_high_before
            if settled:
                break
            low, high = low_sum / n_low * down, high_sum / n_high * up
        kept, n_kept = 0.0, nothing
        for index in range(groups.shape[1]):
            magnitude = magnitudes[index]
            kept += np.float64(magnitude) if magnitude > high else 0.0
            n_kept += one if magnitude > high else nothing
        bracket[LOW], bracket[HIGH], bracket[SUM], bracket[COUNT] = low, high, kept, n_kept
        if settled and n_low == n_high:  # nothing lies between
            bracket[HIGH] = low
    return 0


def _best(groups: Float32Array, brackets: Float64Array, scales: Float32Array) -> int:
    """Put what lies within each bracket in descending order and look at every k there."""
    between = np.empty(groups.shape[1] + 1, np.float64)
    for number in range(len(groups)):
        values, low, high = groups[number], brackets[number, LOW], brackets[number, HIGH]
        kept, n_kept = brackets[number, SUM], brackets[number, COUNT]
        n_between = 0
        for start in range(0, len(values) if low < high else 0, STEP):
            n_inside = 0
            for index in range(start, start + STEP):
                n_inside += (abs(values[index]) > low) & (abs(values[index]) <= high)
            if n_inside == 0:
                continue
            for index in range(start, start + STEP):
                magnitude = np.float64(abs(values[index]))
                if low < magnitude <= high:
                    place = n_between
                    while place > 0 and between[place - 1] < magnitude:
                        between[place] = between[place - 1]
                        place -= 1
                    between[place] = magnitude
                    n_between += 1
        between[n_between] = low
        best_mean, best_gain, smallest = 0.0, 0.0, np.inf
        for place in range(n_between + 1):
            mean = kept / n_kept if n_kept else 0.0
            if smallest > mean / 2 >= between[place] and kept * mean > best_gain:
                best_mean, best_gain = mean, kept * mean
            smallest = between[place]
            kept += smallest
            n_kept += 1
        scales[number] = best_mean
    return 0


# Sums that are exact, or need not be, may be added in any order.
BRACKETS, BEST = Kernel(_brackets, fastmath=("reassoc", "nnan", "nsz")), Kernel(_best)
METHOD = Method("mse", code_mse)
