"""Choose each tensor's type: an exact one if possible, else one that the user allows, else stop with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.tensors import Floats, SourceTensor
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats, ChosenBlocks, Constant, OnGrid, Rounded
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.grid_types import by_known_grid, sample, stored_error
from tritgguf.converter.planning.request import Asked, Request
from tritgguf.converter.planning.smallest_exact import (
    FLOATS,
    REPLACEABLE,
    as_floats,
    on_grid,
    passthrough,
    smallest_exact,
)
from tritgguf.converter.quant.codec import (
    AnyCodec,
    FloatCodec,
    TernaryCodec,
    codecs,
    float_codec,
    float_codecs,
    ternary_codecs,
)
from tritgguf.converter.quant.grids import Grid, find_grid
from tritgguf.converter.quant.method import Method

LEAST_LOSSY_BITS = 16  # a type of so many bits per weight loses too little to measure


def choose_types(
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, SourceTensor] | None,
    request: Request,
    threads: int,
    progress: Step,
    *,
    scale_tensors: bool = False,
) -> tuple[TensorPlan, ...]:
    """Return the plans of all tensors, in order; read as much of each tensor as the choice of its type needs.

    With `scale_tensors` the graph multiplies by `.scale` tensors, which store a scale exactly that fp16 would round;
    each has a plan of its own. `tensors` is None if there are no weights. `progress` is called with the bytes on disk
    of each finished tensor. Raises TensorError if a tensor can't be stored as requested, UnsupportedError if types
    can't be chosen without weights.
    """
    tied = all(spec.role != "output" for spec in specs)

    def choose(spec: TensorSpec) -> list[TensorPlan]:
        source = tensors[spec.source] if tensors is not None and spec.data is None else None
        plan = choose_type(spec, source, request, tied=tied)
        return with_scale_tensor(plan) if scale_tensors else [plan]

    plans: list[TensorPlan] = []
    for spec, chosen in zip(specs, parallel(choose, specs, threads), strict=True):
        plans += chosen
        progress(tensors[spec.source].n_bytes if tensors is not None and spec.data is None else 0)
    return tuple(plans)


def choose_type(
    spec: TensorSpec,
    source: SourceTensor | None,
    request: Request,
    *,
    tied: bool = False,
    grid_of: Callable[[SourceTensor], Grid | None] = find_grid,
) -> TensorPlan:
    """Return one tensor's plan; `source` is None if there are no weights.

    With `tied` the token embeddings are the output layer too. Who knows the grid already gives `grid_of`. Raises as
    `choose_types` does.
    """
    asked = request.asked(spec)
    if spec.role not in REPLACEABLE:
        return _as_the_graph_needs(spec, source, asked, request.target)
    codec = asked.codec
    foreign = asked.by_default and source is not None and source.foreign  # such a type can't stay as it is
    if codec is None or foreign:
        return smallest_exact(spec, source, asked, request, tied=tied, grid_of=grid_of)
    kept = passthrough(spec, source, request.target) if asked.by_default else None
    if kept is not None:
        return TensorPlan(kept, f"{spec.role}: passthrough", exact=True)
    row_length = spec.shape[-1]
    if not row_length % codec.block:
        reason = f"{spec.role}: {codec.name.upper() if asked.by_default else asked.words}"
        return _as_asked(spec, source, codec, reason, asked, request)
    wrong = f"rows of {row_length} values aren't a multiple of {codec.block}, which {codec.name} needs"
    if asked.alone:
        raise TensorError(f"{spec.source}: {wrong}; choose another type, such as {asked.option}f16")
    if request.fallback is None:
        raise TensorError(f"{spec.source}: {wrong}; add --fallback {FLOATS[0]} to store such tensors as F16")
    reason = f"rows of {row_length} aren't a multiple of {codec.block}: fallback {request.fallback.name}"
    return replace(_as_asked(spec, source, request.fallback, reason, asked, request), fallback=True)


def _as_the_graph_needs(spec: TensorSpec, source: SourceTensor | None, asked: Asked, target: str) -> TensorPlan:
    """Return the plan of a norm, a bias or the like: F32, or as a GGUF file has it."""
    kept = passthrough(spec, source, target)
    needed = float_codec("f32") if kept is None else kept.codec
    if asked.alone and asked.codec is not None and asked.codec.name != needed.name:
        raise TensorError(
            f"{asked.words} matches {spec.name}, which has to be {needed.name.upper()} for the graph: let the "
            r"pattern match weights of linear layers only, such as blk\.0\.attn_q\.weight"
        )
    if kept is not None:
        return TensorPlan(kept, f"{spec.role}: passthrough", exact=True)
    reason, codec = f"{spec.role}: F32", float_codec("f32")
    if spec.data is not None:
        return TensorPlan(Constant(spec, codec), reason, exact=True)
    return TensorPlan(AsFloats(spec, codec), reason) if source is None else as_floats(spec, source, codec, reason)


def _as_asked(
    spec: TensorSpec, source: SourceTensor | None, codec: AnyCodec, reason: str, asked: Asked, request: Request
) -> TensorPlan:
    if codec.ternary is True:
        return _as_ternary(spec, source, codec, reason, asked, request)
    if source is None:
        return TensorPlan(AsFloats(spec, codec), reason)
    plan = as_floats(spec, source, codec, reason)
    if source.described:
        return plan
    if codec.grid_levels and not plan.exact:
        plan = by_known_grid(plan, source, find_grid(source))
    return _measured(plan, codec, source) if asked.alone else plan


def _measured(plan: TensorPlan, codec: FloatCodec, source: SourceTensor) -> TensorPlan:
    """Return the plan with its relative error, if the type is so small that it matters."""
    if plan.exact or plan.error is not None or codec.bits_per_weight >= LEAST_LOSSY_BITS:
        return plan
    error = stored_error(codec, sample(source))
    return replace(plan, error=error, reason=f"{plan.reason}, relative error {error:.2g}")


def _as_ternary(
    spec: TensorSpec, source: SourceTensor | None, codec: TernaryCodec, reason: str, asked: Asked, request: Request
) -> TensorPlan:
    """Return the plan of a tensor for which the user asked for a ternary type."""
    by_method = _by_method(spec, codec, request)
    if source is None or source.described:
        return TensorPlan(by_method, reason)
    if source.chosen is not None and source.coded is None:
        return TensorPlan(ChosenBlocks(spec, codec), source.chosen, exact=False)
    grid = find_grid(source)
    weighted = ", importance-weighted" if by_method.weighted else ""
    rounded = f"quantized by {by_method.method.name}{weighted}, which loses quality"
    if grid is None and asked.alone and codec.more_levels and not request.calibrates(spec, codec):
        return _on_more_levels(spec, source, codec, reason, asked)
    if grid is None:
        return TensorPlan(by_method, f"not on a ternary grid: {rounded}", exact=False)
    if grid.fits(codec):
        if source.chosen is not None:
            return TensorPlan(OnGrid(spec, codec, grid, chosen=True), source.chosen, exact=False)
        return on_grid(spec, codec, grid)
    known = by_known_grid(TensorPlan(by_method, ""), source, grid)
    if known.encoder is not by_method and (request.allow_lossy or not _ternary_types_fitting(grid)):
        return known
    what = grid.description(source.shape)
    if not request.allow_lossy:
        error = relative_error(source, codec, by_method.method) if known.error is None else known.error
        raise TensorError(
            f"{spec.source}: {what}, which {codec.name} can't hold: the weights would change by {error:.0%} "
            f"(relative error); {_ways_out(spec, source, grid, asked)}; --allow-lossy accepts the error"
        )
    return TensorPlan(by_method, f"{what}: {rounded}", exact=False)


def _by_method(spec: TensorSpec, codec: TernaryCodec, request: Request) -> Rounded:
    """Return the encoder of a tensor that the method quantizes; UnsupportedError if the type hasn't its levels."""
    method, imatrix = request.method_for(spec), request.imatrix
    if method.levels not in codec.exact_levels:
        types = ", ".join(name for name, other in ternary_codecs().items() if method.levels in other.exact_levels)
        raise UnsupportedError(
            f"--method {method.name} makes {method.levels} levels, which {codec.name} can't hold; types that hold "
            f"them: {types}"
        )
    weighs = imatrix is not None and method.weighted is not None
    return Rounded(spec, codec, method, imatrix.importance(spec.name, spec.shape) if imatrix and weighs else None)


def _on_more_levels(
    spec: TensorSpec, source: SourceTensor, codec: TernaryCodec, reason: str, asked: Asked
) -> TensorPlan:
    """Return the plan of a tensor on no grid in a type that has more levels than grids here."""
    if codec.any_floats is None:
        others = (other for other in float_codecs().values() if other.bits_per_weight > codec.bits_per_weight)
        nearest = min(others, key=lambda other: other.bits_per_weight)
        raise TensorError(
            f"{spec.source} isn't on a grid of three or four levels, and {codec.name} is only written for these here: "
            f"choose another type, such as {asked.option}{nearest.name}"
        )
    return _measured(as_floats(spec, source, codec.any_floats, reason), codec.any_floats, source)


def _ternary_types_fitting(grid: Grid) -> list[TernaryCodec]:
    return [codec for codec in ternary_codecs().values() if grid.fits(codec)]


def _ways_out(spec: TensorSpec, source: SourceTensor, grid: Grid, asked: Asked) -> str:
    """Return advice for the error message: the types that store the tensor, or else how to lose least."""
    exact = "exact" if grid.fp16_error == 0 else "exact, except for scales rounded to fp16,"
    types = ", ".join(f"{asked.option}{name}" for name in _exact_types(source, grid))
    if types:
        return f"{exact} are {types}"
    if spec.role != "linear":
        return f"{asked.option}f32 stores it exactly"
    return f"{asked.option}auto stores it exactly, or with --max-bits BITS at least error"


def _exact_types(source: SourceTensor, grid: Grid) -> list[str]:
    """Return the types for linear layers that store the tensor's codes exactly, smallest first."""
    known = codecs()
    floats = [name for name in FLOATS[:2] if float_codec(name).holds(source.dtype)]
    ternary = [codec.name for codec in _ternary_types_fitting(grid)]
    return sorted([*ternary, *floats], key=lambda name: known[name].bits_per_weight)


def relative_error(source: SourceTensor, codec: TernaryCodec, method: Method) -> float:
    """Return |stored - weights| / |weights| over the whole tensor, if `method` quantized it."""
    error = total = 0.0
    for _, values in source.chunks():
        error += float(((method.quantize(Floats.of(values), codec.block).dequantize() - values) ** 2).sum())
        total += float((values**2).sum())
    return float(np.sqrt(error / total)) if total else 0.0


def with_scale_tensor(plan: TensorPlan) -> list[TensorPlan]:
    """Return the plan, or two plans if fp16 would round the one scale of a tensor, or of each of its matrices.

    The two are unit scales, and float32 `.scale`s, (n_matrices,).
    """
    encoder, grid = plan.encoder, plan.grid
    if grid is None or grid.scales is None or grid.fp16_error == 0 or plan.spec.role != "linear":
        return [plan]
    name = plan.spec.name.removesuffix(".weight") + ".scale"
    scales = np.array(grid.scales, np.float32)
    scale = TensorSpec(plan.spec.source, name, scales.shape, "scale", data=scales)
    which = "its scale is" if len(scales) == 1 else "their scales are"
    reason = plan.reason.split(";")[0] + f"; {which} stored as float32 in a tensor of its own"
    exact = replace(plan, encoder=encoder.with_unit_scale(), exact=True, reason=reason)
    return [exact, TensorPlan(Constant(scale, float_codec("f32")), "scale of the previous tensor", exact=True)]
