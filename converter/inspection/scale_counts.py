"""How often scales of which size occur in a tensor, counted in one pass over its rows with a fixed amount of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.tensors import Float32Array, SourceTensor
from tritgguf.converter.quant.four_levels import LEVELS as FOUR
from tritgguf.converter.quant.four_levels import signed_scales
from tritgguf.converter.quant.grid import Grid

BINS_PER_OCTAVE = 4
LOWEST_OCTAVE, HIGHEST_OCTAVE = -150, 128  # float32's range
N_BINS = (HIGHEST_OCTAVE - LOWEST_OCTAVE) * BINS_PER_OCTAVE
FIRST_CHUNK = 1 << 19  # scales


@dataclass(frozen=True, eq=False)
class ScaleCounts:
    """Numbers of scales by their magnitude, int64 (N_BINS,); `n_zero` more are zero.

    Bin i holds magnitudes from 2 ** (LOWEST_OCTAVE + i / BINS_PER_OCTAVE) on. `smallest` and `largest` are those other
    than zero, 0 if there is none.
    """

    bins: npt.NDArray[np.int64]
    n_zero: int
    smallest: float
    largest: float

    @property
    def n_scales(self) -> int:
        return int(self.bins.sum()) + self.n_zero

    @classmethod
    def of(cls, scales: Float32Array) -> ScaleCounts:
        """Count scales, float32 of any shape."""
        magnitudes = np.abs(scales).reshape(-1)
        used = magnitudes[magnitudes > 0].astype(np.float64)
        places = np.floor((np.log2(used) - LOWEST_OCTAVE) * BINS_PER_OCTAVE).astype(np.int64)
        bins = np.bincount(places.clip(0, N_BINS - 1), minlength=N_BINS)
        smallest, largest = (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)
        return cls(bins, magnitudes.size - used.size, smallest, largest)


def added(counts: Iterable[ScaleCounts]) -> ScaleCounts:
    """Return the counts of all scales together."""
    bins, n_zero, smallest, largest = np.zeros(N_BINS, np.int64), 0, 0.0, 0.0
    for one in counts:
        bins, n_zero = bins + one.bins, n_zero + one.n_zero
        smallest = min((size for size in (smallest, one.smallest) if size), default=0.0)
        largest = max(largest, one.largest)
    return ScaleCounts(bins, n_zero, smallest, largest)


def count_scales(source: SourceTensor, grid: Grid) -> ScaleCounts | None:
    """Count a tensor's scales, one for each group of its grid, or as many as are stored; None for finer grids."""
    if grid.scales is not None:
        return ScaleCounts.of(np.array(grid.scales, np.float32))
    if (coded := source.coded) is not None:
        return added(map(ScaleCounts.of, coded.scale_chunks(FIRST_CHUNK)))
    if grid.levels > FOUR or grid.outliers:
        return None
    return added(map(ScaleCounts.of, _group_scales(source, grid)))


def _group_scales(source: SourceTensor, grid: Grid) -> Iterator[Float32Array]:
    for _, values in source.chunks():
        groups = values.reshape(-1, grid.group)
        scales = signed_scales(groups) if grid.levels == FOUR else np.abs(groups).max(axis=-1)
        if scales is not None:
            yield scales
