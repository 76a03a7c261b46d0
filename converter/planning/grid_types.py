"""Types for weights on a grid per 16 columns, which no ternary type stores: choose the one of least error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tritgguf.converter.core.tensors import CHUNK_VALUES, Float32Array, SourceTensor, row_chunks
from tritgguf.converter.errors import TensorError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.targets import float_types
from tritgguf.converter.quant.codec import Codec, FloatCodec, codecs
from tritgguf.converter.quant.grids import Grid, find_grid
from tritgguf.converter.quant.known_grid import GROUP, KnownGridCodec, codes_and_steps


def by_known_grid(plan: TensorPlan, source: SourceTensor, grid: Grid | None) -> TensorPlan:
    """Return the plan with the type's scales fitted to the tensor's own codes; unchanged if the type can't do that."""
    codec = _fit_to(plan.codec, source, grid)
    if codec is None or grid is None:
        return plan
    error = stored_error(codec, sample(source))
    fit = f"{codec.name.upper()} with scales fitted to its codes, relative error {error:.2g}"
    reason = f"on a {grid.kind} grid per {grid.extent}: {fit}"
    return replace(plan, encoder=AsFloats(plan.spec, codec), reason=reason, exact=False, error=error)


def least_error(spec: TensorSpec, source: SourceTensor, target: str, max_bits: float) -> TensorPlan | None:
    """Return the plan with the type of least error on the target, among those of at most `max_bits` per weight.

    None if the rows fit no such type.
    """
    grid = find_grid(source)
    values = sample(source)
    found: dict[FloatCodec, float] = {}
    for name, codec in codecs().items():
        if name not in float_types(target) or codec.bits_per_weight > max_bits:
            continue
        fitted = _fit_to(codec, source, grid)
        usable = fitted or (None if codec.ternary else codec)
        if usable is not None and source.shape[-1] % codec.block == 0:
            found[usable] = stored_error(usable, values)
    if not found:
        return None
    best = min(found, key=lambda codec: found[codec])
    what = "not on a grid" if grid is None else f"on a grid of {grid.levels} levels per {grid.extent}"
    reason = f"{what}: {best.name.upper()} loses least at {max_bits:g} bits, relative error {found[best]:.2g}"
    return TensorPlan(AsFloats(spec, best), reason, exact=False, error=found[best])


def _fit_to(codec: Codec, source: SourceTensor, grid: Grid | None) -> KnownGridCodec | None:
    if grid is None or grid.levels not in codec.grid_levels or grid.outliers or grid.group % GROUP:
        return None
    if source.shape[-1] % codec.block or not _wholly_on(source, grid.levels):
        return None
    return KnownGridCodec(codec, grid.levels)


def _wholly_on(source: SourceTensor, levels: int) -> bool:
    """Whether all groups of 16 columns are on a grid of that many levels."""
    try:
        for rows in row_chunks(source.shape):
            codes_and_steps(source.read(rows).reshape(-1, GROUP), (levels - 1) // 2)
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
        lost = codec.decode(codec.encode(values)) - values
    except TensorError:  # out of the type's range
        return float("inf")
    norm = float(np.square(values, dtype=np.float64).sum())
    return float(np.sqrt(np.square(lost, dtype=np.float64).sum() / norm)) if norm else 0.0
