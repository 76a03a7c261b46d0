"""Types for weights on a grid per 16 columns, which no ternary type stores: choose the one of least error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tritgguf.converter.core.floats import squares
from tritgguf.converter.core.rows import CHUNK_VALUES
from tritgguf.converter.core.tensors import Float32Array, SourceTensor
from tritgguf.converter.errors import TensorError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.targets import float_types
from tritgguf.converter.quant.codec import Codec, FloatCodec, codecs
from tritgguf.converter.quant.grids import Grid
from tritgguf.converter.quant.known_grid import GROUP, KnownGridCodec, codes_and_steps

TERNARY = 3


def by_known_grid(plan: TensorPlan, source: SourceTensor, grid: Grid | None) -> TensorPlan:
    """Return the plan with the type's scales fitted to the tensor's own codes; unchanged if the type can't do that."""
    if grid is None or not _could_fit(plan.codec, source, grid) or not _wholly_on(source, grid.levels):
        return plan
    codec = KnownGridCodec(plan.codec, grid.levels)
    error = stored_error(codec, sample(source))
    fit = f"{codec.name.upper()} with scales fitted to its codes, relative error {error:.2g}"
    reason = f"on a {grid.kind} grid per {grid.extent}: {fit}"
    return replace(plan, encoder=AsFloats(plan.spec, codec), reason=reason, exact=False, error=error)


def least_error(
    spec: TensorSpec, source: SourceTensor, grid: Grid | None, target: str, max_bits: float
) -> TensorPlan | None:
    """Return the plan with the type of least error on the target, among those of at most `max_bits` per weight.

    `grid` is the tensor's. None if the rows fit no such type.
    """
    candidates = [
        codec
        for name, codec in codecs().items()
        if name in float_types(target) and codec.bits_per_weight <= max_bits and source.shape[-1] % codec.block == 0
    ]
    fitting = any(_could_fit(codec, source, grid) for codec in candidates)
    on_grid = grid is not None and fitting and _wholly_on(source, grid.levels)
    values = sample(source)
    found: dict[FloatCodec, float] = {}
    for codec in candidates:
        if grid is not None and on_grid and _could_fit(codec, source, grid):
            fitted = KnownGridCodec(codec, grid.levels)
            found[fitted] = stored_error(fitted, values)
        elif codec.ternary is False:
            found[codec] = stored_error(codec, values)
    if not found:
        return None
    best = min(found, key=lambda codec: found[codec])
    what = "not on a grid" if grid is None else f"on a grid of {grid.levels} levels per {grid.extent}"
    reason = f"{what}: {best.name.upper()} loses least at {max_bits:g} bits, relative error {found[best]:.2g}"
    return TensorPlan(AsFloats(spec, best), reason, exact=False, error=found[best])


def _could_fit(codec: Codec, source: SourceTensor, grid: Grid | None) -> bool:
    """Whether the type's scales can be fitted to the codes of a tensor that is wholly on the grid."""
    if grid is None or grid.levels not in codec.grid_levels or grid.outliers or grid.group % GROUP:
        return False
    return source.shape[-1] % codec.block == 0


def _wholly_on(source: SourceTensor, levels: int) -> bool:
    """Whether all groups of 16 columns are on a grid of that many levels; `find_grid` saw all of a ternary tensor."""
    if levels == TERNARY:
        return True
    try:
        for _, values in source.chunks():
            codes_and_steps(values.reshape(-1, GROUP), (levels - 1) // 2)
    except TensorError:
        return False
    return True


def sample(source: SourceTensor) -> Float32Array:
    """Return about CHUNK_VALUES values of the tensor, float32 (n_rows, n_columns), rows spread evenly over it."""
    n_rows = math.prod(source.shape[:-1])
    wanted = min(n_rows, max(1, CHUNK_VALUES // source.shape[-1]))
    return source.read(np.linspace(0, n_rows - 1, wanted).astype(np.int64))


def stored_error(codec: FloatCodec, values: Float32Array) -> float:
    """Return |stored - values| / |values|, infinite if a value is out of the type's range."""
    try:
        lost, norm = squares(values, codec.decode(codec.encode(values)))
    except TensorError:  # out of the type's range
        return float("inf")
    return float(np.sqrt(lost / norm)) if norm else 0.0
