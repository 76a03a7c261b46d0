"""Read one tensor and find its grid, its share of zeros, and the types that store it exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import TritggufError
from tritgguf.converter.inspection.scale_counts import ScaleCounts, count_scales
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.choose_types import with_scale_tensor
from tritgguf.converter.planning.encoders import OnGrid
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.quant.codec import codecs, float_codecs, ternary_codecs
from tritgguf.converter.quant.grids import Grid, find_grid

MATRICES = ("linear", "embedding", "output")


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of a model: `name` in GGUF if the model can be converted, `source` on disk.

    `n_bytes` is the size on disk, scales included. `zeros` is the share of zeros. `exact_types` are the types that
    store the tensor exactly, `near_types` those that store every code but round the scale to fp16, smallest first.
    These, `grid` and `scales` are known only for matrices that can be read; `note` is the error if one can't. `scales`
    are counted only where that is asked for.
    """

    name: str
    source: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    grid: Grid | None = None
    zeros: float | None = None
    exact_types: tuple[str, ...] = ()
    near_types: tuple[str, ...] = ()
    note: str = ""
    scales: ScaleCounts | None = field(default=None, compare=False, repr=False)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / max(math.prod(self.shape), 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": self.source,
            "role": self.role,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "bytes": self.n_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "grid": None if self.grid is None else _grid_json(self.grid),
            "zeros": self.zeros,
            "exact_types": list(self.exact_types),
            "near_types": list(self.near_types),
        }


def _grid_json(grid: Grid) -> dict[str, Any]:
    return {
        "levels": grid.levels,
        "group": grid.group,
        "extent": grid.extent,
        "scale": grid.scale,
        "fp16_error": grid.fp16_error,
        "outliers": grid.outliers,
    }


def inspect_tensor(
    spec: TensorSpec, source: SourceTensor | None, n_bytes: int, *, scale_tensors: bool, scales: bool = False
) -> TensorFacts:
    """Read a whole tensor, if it is a matrix; with `scale_tensors` its scale may be a separate float32 tensor.

    `scales` has its scales counted too.
    """
    dtype = "unknown" if source is None else source.dtype
    plain = TensorFacts(spec.name, spec.source, spec.role, spec.shape, dtype, n_bytes)
    if source is None or spec.role not in MATRICES:
        return plain
    try:
        grid = find_grid(source)
        zeros, floats = _scan(source, grid)
        counts = count_scales(source, grid) if scales and grid is not None else None
    except TritggufError as error:
        return replace(plain, note=str(error))
    exact, near = _ternary_types(spec, grid, scale_tensors)
    return replace(
        plain,
        grid=grid,
        zeros=zeros,
        exact_types=tuple(sorted([*exact, *floats], key=_bits)),
        near_types=tuple(sorted(near, key=_bits)),
        scales=counts,
    )


def _bits(name: str) -> float:
    return codecs()[name].bits_per_weight


def _ternary_types(spec: TensorSpec, grid: Grid | None, scale_tensors: bool) -> tuple[list[str], list[str]]:
    """Return the ternary types that store the tensor exactly, and those that round only its scale to fp16."""
    if grid is None:
        return [], []
    fitting = [codec for codec in ternary_codecs().values() if grid.fits(codec)]
    plans = [TensorPlan(OnGrid(spec, codec, grid), "", exact=grid.fp16_error == 0) for codec in fitting]
    if scale_tensors:
        plans = [with_scale_tensor(plan)[0] for plan in plans]
    exact = [plan.codec.name for plan in plans if plan.exact]
    return exact, [codec.name for codec in fitting if codec.name not in exact]


def _scan(source: SourceTensor, grid: Grid | None) -> tuple[float, list[str]]:
    """Return the share of zeros, and the float types that store every value exactly; read the tensor at most once."""
    fitting = [codec for codec in float_codecs().values() if source.shape[-1] % codec.block == 0]
    held = [codec.name for codec in fitting if codec.holds(source.dtype)]
    open_ones = [codec for codec in fitting if codec.name not in held]
    counted = grid.zeros if grid is not None else None
    n_zeros = 0
    for _, values in source.chunks():
        if counted is not None and not open_ones:
            break
        n_zeros += values.size - int(np.count_nonzero(values))
        open_ones = [codec for codec in open_ones if codec.keeps(values)]
    zeros = n_zeros / max(math.prod(source.shape), 1) if counted is None else counted
    return zeros, [*held, *(codec.name for codec in open_ones)]
