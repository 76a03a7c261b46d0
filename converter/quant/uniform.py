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

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.tensors import CodedRows, Float32Array, SourceTensor, row_chunks

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
        groups = rows.reshape(-1, GROUP)
        codes, steps = self.code_groups(groups, best_steps(groups, self.k))
        return CodedRows(codes.reshape(rows.shape), steps.reshape(len(rows), -1), GROUP)

    def code_groups(self, groups: Float32Array, wanted: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
        """Return codes (n_groups, 16) and steps (n_groups,): the better of the two entries around each wanted step."""
        above = np.searchsorted(self.steps, wanted).clip(0, ENTRIES - 1)
        high = self.steps[above]
        low = self.steps[np.maximum(above - 1, 0)]
        steps = np.where(gains(groups, low, self.k) > gains(groups, high, self.k), low, high)
        return rounded(groups, steps, self.k).astype(np.int8), steps


def codebook(source: SourceTensor, digits: int, threads: int) -> Codebook:
    """Return the codebook of a matrix; read the matrix once, and some of its rows twice."""
    k = highest_code(digits)
    chunks = list(row_chunks(source.shape))

    def largest(rows: slice) -> float:
        return float(best_steps(source.read(rows).reshape(-1, GROUP), k).max(initial=0))

    top = max(parallel(largest, chunks, threads), default=0.0)
    if top == 0:
        return Codebook(np.zeros(ENTRIES, np.float32), digits)
    sample = _sample(source)
    wanted = best_steps(sample, k)

    def error(ratio: float) -> float:
        book = Codebook(_log_spaced(top, ratio), digits)
        codes, steps = book.code_groups(sample, wanted)
        return float(np.square(codes * steps[:, None] - sample, dtype=np.float64).sum())

    errors = list(parallel(error, RATIOS.tolist(), threads))
    return Codebook(_log_spaced(top, float(RATIOS[int(np.argmin(errors))])), digits)


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


def best_steps(groups: Float32Array, k: int) -> Float32Array:
    """Return each group's step of least squared error, (n_groups,), among those of the magnitudes at RANKS."""
    ranked = np.sort(np.abs(groups), axis=1)[:, list(RANKS)] / np.float32(k)
    steps = ranked[:, -1].copy()
    best = gains(groups, steps, k)
    for candidate in ranked.T[:-1]:
        gain = gains(groups, candidate, k)
        better = gain > best
        steps, best = np.where(better, candidate, steps), np.where(better, gain, best)
    return np.asarray(steps)


def gains(groups: Float32Array, steps: Float32Array, k: int) -> Float32Array:
    """Return by how much these steps lower the squared error from that of all-zero codes, (n_groups,)."""
    codes = rounded(groups, steps, k)
    gain: Float32Array = steps * (
        2 * np.einsum("ij,ij->i", groups, codes) - steps * np.einsum("ij,ij->i", codes, codes)
    )
    return gain


def rounded(groups: Float32Array, steps: Float32Array, k: int) -> Float32Array:
    """Return the nearest codes, float32 (n_groups, 16); 0 if the step is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Float32Array = np.where(steps > 0, np.float32(1) / steps, np.float32(0))
    inverse[~np.isfinite(inverse)] = 0
    codes: Float32Array = np.rint(groups * inverse[:, None])
    clipped: Float32Array = np.clip(codes, -k, k, out=codes)
    return clipped
