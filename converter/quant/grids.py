"""Find the grid that a float tensor is on: in each group, all values are among 3, 4, 9 or 27 evenly spaced levels.

The levels are symmetric around zero, but for those of four_levels.py. Values on a ternary grid are compared for
equality: rounding to bf16 or fp16 maps equal values to equal values, so it never moves a value off its grid. A group,
whose columns share one scale, is 16 to 256 neighbouring columns, a row, a shard of rows or the whole tensor; the widest
possible one is reported. The tensor is read once, in chunks. The first chunk is small: it mostly suffices to see that a
tensor isn't on a grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.floats import widened
from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import (
    CodedRows,
    CodedTensor,
    Codes,
    Float32Array,
    Floats,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.quant.codec import fp16
from tritgguf.converter.quant.four_levels import LEVELS as FOUR
from tritgguf.converter.quant.four_levels import signed_scales, widest_group
from tritgguf.converter.quant.grid import Grid as Grid
from tritgguf.converter.quant.grid import common_grid

TERNARY = 3  # levels
GROUPS = (16, 32, 64, 128, 256)
BF16_ROUNDING = 2 * 1.01 * 2.0**-8  # relative error of a quotient of two bf16 values, each off by half a unit
FIRST_CHUNK = 1 << 14  # values
CHUNK = 1 << 21  # values; larger than numpy's chunks, since kernels need no float32 copy
FEW = 64  # groups: enough to see that nearly any tensor without a grid has none
FEW_ROWS = 8  # rows: mostly enough to see that groups have different scales
NEAR = 0.05  # report a grid, and count its outliers, if at most this share of the groups has any


def code_on_grid(rows: Floats, group: int) -> CodedRows | None:
    """Return the codes and scales of rows whose every group of `group` columns holds only -a, 0 and a; else None."""
    n_rows, n_columns = rows.words.shape
    scales: Float32Array = np.empty((n_rows, n_columns // group), np.float32)
    codes: Codes = np.empty((n_rows, n_columns), np.int8)
    n_outliers = ON_GRID(rows.words, rows.kind, scales.size, group, scales, codes)
    if n_outliers is None:
        groups = widened(rows).reshape(*scales.shape, group)
        scales, signs = np.abs(groups).max(axis=-1), np.sign(groups)
        codes, n_outliers = signs.astype(np.int8).reshape(codes.shape), int((signs * scales[..., None] != groups).sum())
    return None if n_outliers else CodedRows(codes, scales, group)


def fp16_error(scales: Float32Array) -> float:
    """Return the largest relative error of rounding scales other than zero to fp16."""
    error: Float32Array = np.zeros(1, np.float32)
    magnitudes = np.abs(scales)
    if FP16_ERROR(magnitudes, scales.size, error) is None:
        used = magnitudes[magnitudes > 0]
        error = (np.abs(fp16(used) - used) / used).max(initial=0, keepdims=True)
    return float(error[0])


def prefetch_first_rows(source: SourceTensor) -> None:
    """Prefetch the rows that `find_grid` reads first."""
    source.prefetch(next(row_chunks(source.shape, first=FIRST_CHUNK), slice(0, 0)))


def find_grid(source: SourceTensor) -> Grid | None:
    """Return the tensor's grid, None if it is on none; raise TensorError if a value is NaN or Inf.

    The matrices of a tensor of three dimensions each have their own; the grid returned describes all of them.
    """
    matrices = source.matrices()
    if len(matrices) == 1:
        return _matrix_grid(matrices[0])
    grids: list[Grid] = []
    for matrix in matrices:
        grid = _matrix_grid(matrix)
        if grid is None:
            return None
        grids.append(grid)
    return common_grid(grids, source.shape[-1])


def _matrix_grid(source: SourceTensor) -> Grid | None:
    if (coded := source.coded) is not None:
        return _coded_grid(coded)
    ternary = _ternary_grid(source)
    if ternary is not None and ternary.outliers == 0:
        return ternary
    return _four_level_grid(source) or _finer_grid(source) or ternary


def _coded_grid(source: CodedTensor) -> Grid:
    """Return the grid of stored codes: its levels are known, and scales may be shared by several groups."""
    if source.levels > FOUR:
        return Grid(source.levels, source.group, f"{source.group} columns")
    evidence = _Evidence(source.group, source.shape[-1])
    first, most = 0, TERNARY
    for scales, levels in source.leveled_scales(FIRST_CHUNK):
        evidence.apart |= _hides_codes(source, scales, first)
        evidence.add(scales, source.group)
        first, most = first + len(scales), max(most, levels)
    return evidence.grid(n_values=None, levels=most)


def _ternary_grid(source: SourceTensor) -> Grid | None:
    n_columns = source.shape[-1]
    finest = _finest_group(n_columns)
    evidence = _Evidence(finest, n_columns)
    for rows in row_chunks(source.shape, n_values=CHUNK, first=FIRST_CHUNK):
        source.read_now(rows)
        floats = source.floats(rows)
        group = finest if evidence.outliers else evidence.widest()  # fewer groups take less time
        scales, n_zeros, outliers, n_bad_groups = _ternary_groups(floats, group)
        if n_bad_groups and group > finest:
            group = finest
            scales, n_zeros, outliers, n_bad_groups = _ternary_groups(floats, group)
        if not np.isfinite(scales).all():
            source.read(rows)  # raises an error that names the value
        source.evict(rows)
        if n_bad_groups > NEAR * scales.size:
            return None
        evidence.add(scales, group, n_zeros, outliers)
    return evidence.grid(n_values=math.prod(source.shape))


def _four_level_grid(source: SourceTensor) -> Grid | None:
    n_columns = source.shape[-1]
    group, n_zeros, error = n_columns, 0, 0.0
    for rows in row_chunks(source.shape, n_values=CHUNK, first=FIRST_CHUNK):
        source.read_now(rows)
        values = source.read(rows)
        source.evict(rows)
        widest = widest_group(values, n_columns, group)
        scales = None if widest is None else signed_scales(values.reshape(-1, widest))
        if widest is None or scales is None:
            return None
        group, error = widest, max(error, fp16_error(scales))
        n_zeros += values.size - int(np.count_nonzero(values))
    extent = "row" if group == n_columns else f"{group} columns"
    return Grid(FOUR, group, extent, fp16_error=error, zeros=n_zeros / math.prod(source.shape))


def _finer_grid(source: SourceTensor) -> Grid | None:
    """Return a grid of 9 or 27 levels, judged by the tensor's first rows."""
    if source.dtype not in FLOAT_DTYPES:
        return None  # the levels of a quantized GGUF tensor come from its type, not from training
    finest = _finest_group(source.shape[-1])
    levels = _finer_levels(source.read(next(row_chunks(source.shape, first=FIRST_CHUNK))), finest)
    return None if levels is None else Grid(levels, finest, f"{finest} columns")


def _finest_group(n_columns: int) -> int:
    return next((group for group in GROUPS if n_columns % group == 0), n_columns)


def _hides_codes(source: CodedTensor, scales: Float32Array, first: int) -> bool:
    """Whether a scale of zero, of the rows from `first` on, turns other codes than 0 into zeros."""
    rows = np.flatnonzero((scales == 0).any(axis=1))
    if not rows.size:
        return False
    codes = source.read_codes(first + rows).codes.reshape(len(rows), -1, source.group)
    return bool(codes[scales[rows] == 0].any())


def _ternary_groups(floats: Floats, group: int) -> tuple[Float32Array, int, int, int]:
    """Return each group's scale, (n_rows, n_groups), and the numbers of zeros, outliers and groups with outliers.

    Outliers aren't counted if more than NEAR of the groups have any, since then there is no grid.
    """
    n_rows, n_columns = floats.words.shape
    scales: Float32Array = np.empty((n_rows, n_columns // group), np.float32)
    counts = np.zeros(1, np.int64)
    n_bad_groups = LARGEST(floats.words, floats.kind, scales.size, group, scales, counts)
    if n_bad_groups is not None and (n_bad_groups == 0 or n_bad_groups > NEAR * scales.size):
        return scales, int(counts[0]), 0, n_bad_groups
    magnitudes = np.abs(widened(floats)).reshape(n_rows, -1, group)
    scales = magnitudes.max(axis=-1)
    off = (magnitudes != 0) & (magnitudes != scales[..., None])
    bad = off.any(axis=-1)
    outliers = 0
    if bad.any() and bad.sum() <= NEAR * bad.size:
        # The largest value may be an outlier: a group with outliers has its median nonzero magnitude as scale.
        suspects = np.where(magnitudes[bad] == 0, np.nan, magnitudes[bad])
        usual = np.nanquantile(suspects, 0.5, axis=-1, method="nearest").astype(np.float32)
        outliers = int((~np.isnan(suspects) & (suspects != usual[:, None])).sum())
        scales[bad] = np.where(np.isfinite(magnitudes[bad]).all(axis=-1), usual, np.nan)
    return scales, int((magnitudes == 0).sum()), outliers, int(bad.sum())


def _finer_levels(values: Float32Array, group: int) -> int | None:
    """Return 9 or 27 if all groups are on a grid of that many levels and not on a ternary one, else None.

    The largest value of a group is some level m of 1..k, and then every value is a multiple of largest / m, up to the
    rounding of fp16 or bf16.
    """
    groups = values.reshape(-1, group)[:4096]
    largest = np.abs(groups).max(axis=1, keepdims=True)
    groups, largest = groups[largest[:, 0] > 0], largest[largest[:, 0] > 0]
    if not len(groups) or (len(groups) > 2 * FEW and _levels_of(groups[:FEW], largest[:FEW]) is None):
        return None
    return _levels_of(groups, largest)


def _levels_of(groups: Float32Array, largest: Float32Array) -> int | None:
    on_grid: npt.NDArray[np.bool_] = np.zeros(len(groups), bool)
    for levels, highest in ((3, 1), (9, 4), (27, 13)):
        for level in range(1, highest + 1):
            multiples = groups / largest * level
            on_grid |= (np.abs(multiples - np.rint(multiples)) <= level * BF16_ROUNDING).all(axis=1)
        if on_grid.all():
            return None if levels == 3 else levels
        if levels == 3 and on_grid.mean() > 1 - NEAR:
            return None  # a ternary grid with outliers
    return None


def _shared(scales: Float32Array, n: int) -> Float32Array | None:
    """Return the scale that each `n` neighbours share, (n_rows, n_scales / n); None if some differ; zeros fit any."""
    grouped = scales.reshape(len(scales), -1, n)
    widest: Float32Array = grouped.max(axis=-1)
    if (lowest := grouped.min(axis=-1)).min(initial=0) < 0:  # on four levels
        widest = np.where(-lowest > widest, lowest, widest)
    return widest if ((grouped == widest[..., None]) | (grouped == 0)).all() else None


@dataclass
class _Evidence:
    """What the rows seen so far tell about the scales of a tensor with ternary or four-level codes.

    `apart`: some scales are zero though their codes aren't, so that no other scale fits these.
    """

    finest: int
    n_columns: int
    n_zeros: int | None = 0
    outliers: int = 0
    apart: bool = False
    fp16_error: float = 0.0
    row_scales: list[Float32Array] = field(default_factory=list)
    shared: dict[int, bool] = field(default_factory=dict)

    def widest(self) -> int:
        """Return the widest group whose columns have shared their scales so far."""
        return max((group for group, shared in self.shared.items() if shared), default=self.finest)

    def add(self, scales: Float32Array, columns: int, n_zeros: int | None = None, outliers: int = 0) -> None:
        """Add the scales of some rows, one per `columns` columns, (n_rows, n_columns / columns)."""
        # Wide enough for each block size: groups of 48 columns may fill blocks of 64 in threes.
        wider = sorted({math.lcm(self.finest, group) for group in GROUPS}, reverse=True)
        for group in (self.n_columns, *(g for g in wider if g > self.finest and self.n_columns % g == 0)):
            if self.apart and group > self.finest:
                self.shared[group] = False
            if not self.shared.get(group, True):
                continue
            per_group = group // columns
            few = _shared(scales[:FEW_ROWS], per_group)
            shared = None if few is None else _shared(scales, per_group)
            self.shared[group] = shared is not None
            if shared is not None:
                widest = shared
                break  # then the narrower groups share theirs too
        else:
            widest = scales
        self.fp16_error = max(self.fp16_error, fp16_error(widest))
        if self.shared[self.n_columns]:
            self.row_scales.append(widest[:, 0])
        self.n_zeros = None if n_zeros is None or self.n_zeros is None else self.n_zeros + n_zeros
        self.outliers += outliers

    def grid(self, n_values: int | None, levels: int = 3) -> Grid:
        """Return the grid with the widest groups that all rows allow."""
        group = self.widest()
        scales, extent = None, f"{group} columns"
        if group == self.n_columns:
            per_row = np.concatenate(self.row_scales)
            used = per_row[per_row != 0]
            n_shards = 1 + int((used[1:] != used[:-1]).sum())
            extent = "row shard" if n_shards <= len(used) // 2 else "row"
            if n_shards == 1 and not self.apart:
                extent = "tensor"
            if extent == "tensor":
                scales = (float(used[0]) if used.size else 0.0,)
        zeros = self.n_zeros / n_values if self.n_zeros is not None and n_values else None
        return Grid(levels, group, extent, scales, self.fp16_error, zeros, self.outliers)


ON_GRID = Kernel("on_grid", WORDS, int, int, int, np.float32, np.int8)
FP16_ERROR = Kernel("fp16_error", np.float32, int, np.float32)
LARGEST = Kernel("largest", WORDS, int, int, int, np.float32, np.int64)
