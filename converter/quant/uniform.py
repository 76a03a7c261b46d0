"""The uniform balanced ternary codec: groups of 16 columns, 3^d levels, a codebook of 27 scales per matrix.

A weight is code · step, with |code| <= k = (3^d - 1) / 2. A group's scale is its largest level, k · step. It is the
group's magnitude at rank 10, 12, 14 or 15 (ascending, from 0), whichever gives the least squared error. The codebook's
entries are evenly spaced in their logarithm; the last entry is the matrix's largest group scale. The published codec
leaves two choices open, and squared error makes them here: the first entry is the best of `RATIOS` on a sample of
groups, and a group uses the better of the two entries around its scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats, SourceTensor, row_chunks

GROUP = 16
ENTRIES = 27
RANKS = (10, 12, 14, 15)
RATIOS = 2.0 ** -np.arange(0.5, 12.5, 0.5)  # first entry / last entry
SAMPLE_GROUPS = 8192
INDEX_TRITS = 3  # enough for 27 entries


def highest_code(digits: int) -> int:
    """Return k, the highest code of `digits` trits."""
    k: int = (3**digits - 1) // 2  # = 1 + 3 + … + 3^(d - 1), so a code's trits are its digits with k added
    return k


def information_bits(digits: int) -> float:
    """Return the bits per weight of codes of `digits` trits, codebook indices included."""
    return digits * math.log2(3) + math.log2(ENTRIES) / GROUP


@dataclass(frozen=True)
class Codebook:
    """One matrix's scales as steps between levels, ascending, float32 (27,); codes reach from -k to k."""

    steps: Float32Array
    digits: int

    @property
    def k(self) -> int:
        return highest_code(self.digits)

    def code(self, rows: Float32Array) -> CodedRows:
        """Quantize float32 rows, (n_rows, n_columns), with n_columns a multiple of 16."""
        groups = np.ascontiguousarray(rows).reshape(-1, GROUP)
        codes: Codes = np.empty(groups.shape, np.int8)
        steps: Float32Array = np.empty(len(groups), np.float32)
        if CODE(groups, len(groups), self.steps, self.k, codes, steps) is None:
            columns = in_columns(groups)
            steps, _ = self.better_entries(columns, best_steps(columns, self.k))
            codes = np.ascontiguousarray(rounded(columns, steps, self.k).T.astype(np.int8))
        return CodedRows(codes.reshape(rows.shape), steps.reshape(len(rows), -1), GROUP)

    def better_entries(self, columns: Float32Array, wanted: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return steps and their gains, (n_groups,): the better of the two entries around each wanted step."""
        above = np.searchsorted(self.steps, wanted).clip(0, ENTRIES - 1)
        high, low = self.steps[above], self.steps[np.maximum(above - 1, 0)]
        high_gain, low_gain = gains(columns, high, self.k), gains(columns, low, self.k)
        better = low_gain > high_gain
        return np.where(better, low, high), np.where(better, low_gain, high_gain)


def codebook(source: SourceTensor, digits: int, threads: int) -> Codebook:
    """Return the codebook of a matrix; read the matrix once, and some of its rows twice."""
    k = highest_code(digits)
    chunks = list(row_chunks(source.shape))

    def largest(rows: slice) -> float:
        source.read_now(rows)
        step, all_finite = largest_step(source.floats(rows), k)
        if not all_finite:
            source.read(rows)  # raises an error that names the value
        source.evict(rows)
        return step

    top = max(parallel(largest, chunks, threads), default=0.0)
    if top == 0:
        return Codebook(np.zeros(ENTRIES, np.float32), digits)
    sample = _sample(source)
    wanted = steps_of(sample, k)

    def gain(ratio: float) -> float:
        found = sample_gains(sample, wanted, Codebook(_log_spaced(top, ratio), digits))
        return float(np.nan_to_num(found).sum(dtype=np.float64))  # of values from 1e19 on, squares overflow

    # Of most gain is of least squared error: the two differ by the sum of squares.
    gain_of_each = list(parallel(gain, RATIOS.tolist(), threads))
    return Codebook(_log_spaced(top, float(RATIOS[int(np.argmax(gain_of_each))])), digits)


def _log_spaced(top: float, ratio: float) -> Float32Array:
    places = np.arange(ENTRIES - 1, -1, -1) / (ENTRIES - 1)
    entries: npt.NDArray[np.float64] = top * ratio**places
    return entries.astype(np.float32)


def _sample(source: SourceTensor) -> Float32Array:
    """Return about SAMPLE_GROUPS groups, (n_groups, 16), from rows spread evenly over the matrix."""
    n_rows, n_columns = source.shape
    wanted = min(n_rows, max(1, SAMPLE_GROUPS * GROUP // n_columns))
    rows = np.linspace(0, n_rows - 1, wanted).astype(np.int64)
    return source.read(rows).reshape(-1, GROUP)


def largest_step(floats: Floats, k: int) -> tuple[float, bool]:
    """Return the largest best step of a group of stored floats, and whether all values are finite."""
    top: Float32Array = np.zeros(1, np.float32)
    n_infinite = TOP(floats.words, floats.kind, floats.words.size // GROUP, k, top)
    if n_infinite is not None:
        return float(top[0]), n_infinite == 0
    values, all_finite = checked(floats)
    return float(best_steps(in_columns(values.reshape(-1, GROUP)), k).max(initial=0)) if all_finite else 0.0, all_finite


def steps_of(groups: Float32Array, k: int) -> Float32Array:
    """Return the best step of each group, (n_groups,), of groups (n_groups, 16)."""
    steps: Float32Array = np.empty(len(groups), np.float32)
    return steps if BEST_STEPS(groups, len(groups), k, steps) is not None else best_steps(in_columns(groups), k)


def sample_gains(groups: Float32Array, wanted: Float32Array, book: Codebook) -> Float32Array:
    """Return each group's gain, (n_groups,), with the better of the two entries around its wanted step."""
    found: Float32Array = np.empty(len(groups), np.float32)
    if GAINS(groups, len(groups), wanted, book.steps, book.k, found) is None:
        _, found = book.better_entries(in_columns(groups), wanted)
    return found


def in_columns(groups: Float32Array) -> Float32Array:
    """Return groups (n_groups, 16) as columns, (16, n_groups): numpy adds rows fastest, and one after the other."""
    return np.ascontiguousarray(groups.T)


def best_steps(columns: Float32Array, k: int) -> Float32Array:
    """Return each group's step of least squared error, (n_groups,), among those of the magnitudes at RANKS."""
    *others, steps = np.sort(np.abs(columns), axis=0)[list(RANKS)] / np.float32(k)
    best = gains(columns, steps, k)
    for candidate in others:
        gain = gains(columns, candidate, k)
        better = gain > best
        steps, best = np.where(better, candidate, steps), np.where(better, gain, best)
    return np.asarray(steps)


def gains(columns: Float32Array, steps: Float32Array, k: int) -> Float32Array:
    """Return by how much these steps lower the squared error from that of all-zero codes, (n_groups,)."""
    codes = rounded(columns, steps, k)
    products, squares = np.zeros_like(steps), np.zeros_like(steps)
    with np.errstate(over="ignore", invalid="ignore"):
        for values, row in zip(columns, codes, strict=True):  # in this order, which decides the rounding
            products += values * row
            squares += row * row
        gain: Float32Array = steps * (2 * products - steps * squares)
    return gain


def rounded(columns: Float32Array, steps: Float32Array, k: int) -> Float32Array:
    """Return the nearest codes, float32 (16, n_groups); 0 if the step is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Float32Array = np.where(steps > 0, np.float32(1) / steps, np.float32(0))
        inverse[~np.isfinite(inverse)] = 0
        codes: Float32Array = np.rint(columns * inverse)
    clipped: Float32Array = np.clip(codes, -k, k, out=codes)
    return clipped


TOP = Kernel("uniform_top", WORDS, int, int, float, np.float32)
BEST_STEPS = Kernel("uniform_steps", np.float32, int, float, np.float32)
GAINS = Kernel("uniform_gains", np.float32, int, np.float32, np.float32, float, np.float32)
CODE = Kernel("uniform_code", np.float32, int, np.float32, float, np.int8, np.float32)
