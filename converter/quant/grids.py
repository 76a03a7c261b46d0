"""Is a float tensor already on a grid: every value of a group one of 3, 9 or 27 evenly spaced levels around zero?

Ternary grids are compared for equality: rounding to bf16 or fp16 maps equal values to equal values, so it never takes a
value off its grid. The groups may share their scale over 16 to 256 neighbouring columns, a row, a shard of rows or the
whole tensor; the widest that holds is reported. One pass in chunks, the first of which is small: it mostly suffices for
a tensor that is no grid.
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

GROUPS = (16, 32, 64, 128, 256)
BF16_ROUNDING = 2 * 1.01 * 2.0**-8  # of a quotient: half a unit in the last place of each of two bf16 values
FIRST_LOOK = 1 << 14  # values
AT_ONCE = 1 << 21  # values: more than numpy likes, since kernels make no float32 of them
FEW = 64  # groups, of which one is off in nearly every tensor that is no grid
FEW_ROWS = 8  # which mostly suffice to see that groups share no scale
NEAR = 0.05  # a grid is still reported, with its outliers counted, while fewer groups than this hold any


@dataclass(frozen=True)
class Grid:
    """A tensor's grid.

    `levels` is 3, 9 or 27. `group` neighbouring columns share one scale (the row's length where whole rows do),
    `extent` says it in words. `scale` is the one scale of the whole tensor, if it has one. `fp16_error` is how much
    fp16 changes a scale (relative, at most), `zeros` the share of zeros, `outliers` the number of values off the grid.
    """

    levels: int
    group: int
    extent: str
    scale: float | None = None
    fp16_error: float = 0.0
    zeros: float | None = None
    outliers: int = 0

    @property
    def ternary(self) -> bool:
        """Whether codes and scales reproduce every value."""
        return self.levels == 3 and self.outliers == 0

    def description(self, shape: tuple[int, ...]) -> str:
        """Say in words what grid a tensor of that shape is on."""
        outliers = f", but {self.outliers} of {math.prod(shape)} values are off it" if self.outliers else ""
        kind = "ternary" if self.levels == 3 else f"{self.levels}-level"
        return f"its values are on a {kind} grid per {self.extent}{outliers}"

    def fits(self, block: int) -> bool:
        """Whether blocks of `block` columns each lie in one group."""
        return self.ternary and self.group % block == 0


def code_on_grid(rows: Floats, group: int) -> CodedRows | None:
    """Return the rows as codes and scales if every group lies on a {-a, 0, a} grid, else None."""
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
    """Return by how much fp16 changes one of the scales above zero, relatively and at most."""
    error: Float32Array = np.zeros(1, np.float32)
    if FP16_ERROR(np.ascontiguousarray(scales), scales.size, error) is None:
        used = scales[scales > 0]
        error = (np.abs(fp16(used) - used) / used).max(initial=0, keepdims=True)
    return float(error[0])


def ask_for_first_look(source: SourceTensor) -> None:
    """Have what is looked at first read meanwhile."""
    source.prefetch(next(row_chunks(source.shape, first=FIRST_LOOK), slice(0, 0)))


def find_grid(source: SourceTensor) -> Grid | None:
    """Return the tensor's grid, or None."""
    n_columns = source.shape[-1]
    if isinstance(source, CodedTensor) and source.levels > 3:
        return Grid(source.levels, source.group, f"{source.group} columns")
    if isinstance(source, CodedTensor):
        evidence = _Evidence(source.group, n_columns)
        for scales in source.scale_chunks(FIRST_LOOK):
            evidence.add(scales, source.group)
        return evidence.grid(n_values=None)
    finest = next((group for group in GROUPS if n_columns % group == 0), n_columns)
    evidence = _Evidence(finest, n_columns)
    for rows in row_chunks(source.shape, n_values=AT_ONCE, first=FIRST_LOOK):
        source.read_now(rows)
        floats = source.floats(rows)
        # A quantized source has levels of its own, which nobody trained.
        if rows.start == 0 and source.dtype in FLOAT_DTYPES and (levels := _finer_levels(widened(floats), finest)):
            return Grid(levels, finest, f"{finest} columns")
        group = finest if evidence.outliers else evidence.widest()  # the fewer groups, the faster
        scales, n_zeros, outliers, n_bad_groups = _ternary_groups(floats, group)
        if n_bad_groups and group > finest:
            group = finest
            scales, n_zeros, outliers, n_bad_groups = _ternary_groups(floats, group)
        if not np.isfinite(scales).all():
            source.read(rows)  # says which value isn't finite
        source.evict(rows)
        if n_bad_groups > NEAR * scales.size:
            return None
        evidence.add(scales, group, n_zeros, outliers)
    return evidence.grid(n_values=int(np.prod(source.shape)))


def _ternary_groups(floats: Floats, group: int) -> tuple[Float32Array, int, int, int]:
    """Return each group's scale (n_rows, n_groups), and the numbers of zeros, of outliers, of groups with outliers."""
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
        # An outlier may be the largest value, so a group with outliers is judged by its most usual magnitude.
        suspects = np.where(magnitudes[bad] == 0, np.nan, magnitudes[bad])
        usual = np.nanquantile(suspects, 0.5, axis=-1, method="nearest").astype(np.float32)
        outliers = int((~np.isnan(suspects) & (suspects != usual[:, None])).sum())
        scales[bad] = usual
    return scales, int((magnitudes == 0).sum()), outliers, int(bad.sum())


def _finer_levels(values: Float32Array, group: int) -> int | None:
    """Return 9 or 27 if every group is one of so many levels, but not 3; fp16 and bf16 rounding are tolerated.

    A group's largest value is some level m of 1..k; then every value is a multiple of (largest / m).
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
            return None  # ternary with outliers
    return None


def _shared(scales: Float32Array, n: int) -> Float32Array | None:
    """Return what each `n` neighbours share, zeros aside, shape (n_rows, n_scales / n); None where some don't."""
    grouped = scales.reshape(len(scales), -1, n)
    widest: Float32Array = grouped.max(axis=-1)
    return widest if ((grouped == widest[..., None]) | (grouped == 0)).all() else None


@dataclass
class _Evidence:
    """What is known of a ternary tensor's scales after the rows seen so far."""

    finest: int
    n_columns: int
    n_zeros: int | None = 0
    outliers: int = 0
    fp16_error: float = 0.0
    row_scales: list[Float32Array] = field(default_factory=list)
    shared: dict[int, bool] = field(default_factory=dict)

    def widest(self) -> int:
        """Return the widest group whose columns have shared their scales so far."""
        return max((group for group, shared in self.shared.items() if shared), default=self.finest)

    def add(self, scales: Float32Array, columns: int, n_zeros: int | None = None, outliers: int = 0) -> None:
        """Take in the scales of some rows, one per `columns`, shape (n_rows, n_columns / columns)."""
        candidates = [self.n_columns, *(g for g in GROUPS[::-1] if g > self.finest and self.n_columns % g == 0)]
        for group in candidates:
            if not self.shared.get(group, True):
                continue
            per_group = group // columns
            few = _shared(scales[:FEW_ROWS], per_group)
            shared = None if few is None else _shared(scales, per_group)
            self.shared[group] = shared is not None
            if shared is not None:
                widest = shared
                break  # then narrower groups share theirs as well
        else:
            widest = scales
        self.fp16_error = max(self.fp16_error, fp16_error(widest))
        if self.shared[self.n_columns]:
            self.row_scales.append(widest[:, 0])
        self.n_zeros = None if n_zeros is None or self.n_zeros is None else self.n_zeros + n_zeros
        self.outliers += outliers

    def grid(self, n_values: int | None) -> Grid:
        """Return the grid that all the evidence allows, with the widest groups."""
        group = self.widest()
        scale, extent = None, f"{group} columns"
        if group == self.n_columns:
            per_row = np.concatenate(self.row_scales)
            used = per_row[per_row > 0]
            n_shards = 1 + int((used[1:] != used[:-1]).sum())
            extent = "tensor" if n_shards == 1 else "row shard" if n_shards <= len(used) // 2 else "row"
            if extent == "tensor":
                scale = float(used[0]) if used.size else 0.0
        zeros = self.n_zeros / n_values if self.n_zeros is not None and n_values else None
        return Grid(3, group, extent, scale, self.fp16_error, zeros, self.outliers)


ON_GRID = Kernel("on_grid", WORDS, int, int, int, np.float32, np.int8)
FP16_ERROR = Kernel("fp16_error", np.float32, int, np.float32)
LARGEST = Kernel("largest", WORDS, int, int, int, np.float32, np.int64)
