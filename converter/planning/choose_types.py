"""Choose each tensor's type: an exact one if possible, else one that the user allows, else stop with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.tensors import Floats, SourceTensor
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats, Constant, Encoder, OnGrid, Passthrough, Rounded
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.grid_types import by_known_grid, least_error
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.targets import float_types, refuses, ternary_types
from tritgguf.converter.quant.codec import (
    AnyCodec,
    AnyGgmlType,
    FloatCodec,
    TernaryCodec,
    codecs,
    float_codec,
    ternary_codec,
    ternary_codecs,
)
from tritgguf.converter.quant.grids import Grid, find_grid
from tritgguf.converter.quant.method import Method

FLOATS = ("f16", "bf16", "f32")  # smallest first; f32 stores every float exactly
REPLACEABLE = ("linear", "embedding", "output")  # the graph accepts any type for tensors of these roles


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

    def choose(spec: TensorSpec) -> list[TensorPlan]:
        if spec.data is not None:
            return [TensorPlan(Constant(spec, float_codec("f32")), f"{spec.role}: F32", exact=True)]
        plan = choose_type(spec, tensors[spec.source] if tensors is not None else None, request)
        return with_scale_tensor(plan) if scale_tensors else [plan]

    plans: list[TensorPlan] = []
    for spec, chosen in zip(specs, parallel(choose, specs, threads), strict=True):
        plans += chosen
        progress(tensors[spec.source].n_bytes if tensors is not None and spec.data is None else 0)
    return tuple(plans)


def choose_type(spec: TensorSpec, source: SourceTensor | None, request: Request) -> TensorPlan:
    """Return one tensor's plan; `source` is None if there are no weights. Raises as `choose_types` does."""
    if spec.role == "linear":
        return _choose_linear(spec, source, request)
    wanted = {"embedding": request.embedding, "output": request.output}.get(spec.role)
    kept = _passthrough(spec, source, request) if wanted is None else None
    if kept is not None:
        return TensorPlan(kept, f"{spec.role}: passthrough", exact=True)
    codec = wanted or float_codec("f16" if spec.role in ("embedding", "output") else "f32")
    if spec.shape[-1] % codec.block:
        raise TensorError(
            f"{spec.source}: rows of {spec.shape[-1]} values aren't a multiple of {codec.block}, which {codec.name} "
            f"needs; choose another --{spec.role}-type, such as f16"
        )
    return _as_asked(spec, source, codec, f"{spec.role}: {codec.name.upper()}", request)


def _passthrough(spec: TensorSpec, source: SourceTensor | None, request: Request) -> Encoder | None:
    """Return the encoder that keeps a GGUF tensor's bytes; None for other tensors, or if the target refuses the type.

    Raises TensorError if the target refuses the type and the graph accepts no other for this tensor.
    """
    if source is None or source.ggml_type is None:
        return None
    if not refuses(request.target, source.dtype):
        return Passthrough(spec, AnyGgmlType(source.ggml_type))
    if spec.role not in REPLACEABLE:
        raise TensorError(
            f"{spec.source} is {source.dtype}, which {request.target} refuses, and this tensor can't be stored as "
            "another type: start from a file of the model in another type, or convert for another target (--for)"
        )
    return None


def _choose_linear(spec: TensorSpec, source: SourceTensor | None, request: Request) -> TensorPlan:
    row_length, codec = spec.shape[-1], request.type
    if codec is None:
        return _smallest_exact(spec, source, request)
    if row_length % codec.block:
        if request.fallback is None:
            raise TensorError(
                f"{spec.source}: rows of {row_length} values aren't a multiple of {codec.block}, which {codec.name} "
                f"needs; add --fallback {FLOATS[0]} to store such tensors as F16"
            )
        reason = f"rows of {row_length} aren't a multiple of {codec.block}: fallback {request.fallback.name}"
        return replace(_as_asked(spec, source, request.fallback, reason, request), fallback=True)
    return _as_asked(spec, source, codec, f"linear layer: {codec.name.upper()} as asked", request)


def _as_asked(
    spec: TensorSpec, source: SourceTensor | None, codec: AnyCodec, reason: str, request: Request
) -> TensorPlan:
    if codec.ternary is True:
        return _as_ternary(spec, source, codec, reason, request)
    if source is None:
        return TensorPlan(AsFloats(spec, codec), reason)
    plan = _as_floats(spec, source, codec, reason)
    return by_known_grid(plan, source, find_grid(source)) if codec.grid_levels and not plan.exact else plan


def _as_floats(spec: TensorSpec, source: SourceTensor, codec: FloatCodec, reason: str) -> TensorPlan:
    encoder = AsFloats(spec, codec)
    if codec.holds(source.dtype):
        return TensorPlan(encoder, reason, exact=True)
    for _, values in source.chunks():
        if not codec.keeps(values):
            reason = f"{reason}; {source.dtype} values outside {codec.name.upper()} are rounded"
            return TensorPlan(encoder, reason, exact=False)
    return TensorPlan(encoder, reason, exact=True)


def _as_ternary(
    spec: TensorSpec, source: SourceTensor | None, codec: TernaryCodec, reason: str, request: Request
) -> TensorPlan:
    """Return the plan of a tensor for which the user asked for a ternary type."""
    by_method = Rounded(spec, codec, request.method)
    if source is None:
        return TensorPlan(by_method, reason)
    grid = find_grid(source)
    rounded = f"quantized by {request.method.name}, which loses quality"
    if grid is None:
        return TensorPlan(by_method, f"not on a ternary grid: {rounded}", exact=False)
    if grid.fits(codec):
        return _exact_ternary(spec, codec, grid)
    known = by_known_grid(TensorPlan(by_method, ""), source, grid)
    if known.encoder is not by_method and (request.allow_lossy or not _ternary_types_for(grid)):
        return known
    what = grid.description(source.shape)
    if not request.allow_lossy:
        error = relative_error(source, codec, request.method) if known.error is None else known.error
        raise TensorError(
            f"{spec.source}: {what}, which {codec.name} can't hold: the weights would change by {error:.0%} "
            f"(relative error); {_ways_out(source, grid)}; --allow-lossy accepts the error"
        )
    return TensorPlan(by_method, f"{what}: {rounded}", exact=False)


def _exact_ternary(spec: TensorSpec, codec: TernaryCodec, grid: Grid) -> TensorPlan:
    zeros = "" if grid.zeros is None else f", {grid.zeros:.0%} zeros"
    found = f"on a {grid.kind} grid per {grid.extent}{zeros}"
    encoder = OnGrid(spec, codec, grid)
    if grid.fp16_error == 0:
        return TensorPlan(encoder, found, exact=True)
    reason = f"{found}; codes exact, scale rounded to fp16 by {grid.fp16_error:.1e}"
    return TensorPlan(encoder, reason, exact=False)


def _smallest_exact(spec: TensorSpec, source: SourceTensor | None, request: Request) -> TensorPlan:
    if source is None:
        raise UnsupportedError("no weights here, so no exact type can be chosen: add --type, such as --type tq2_0")
    grid = find_grid(source)
    kept, ternary = _passthrough(spec, source, request), _smallest_ternary(spec, grid, request.target)
    if ternary is not None and (kept is None or not _beats(kept, ternary, request.target)):
        return ternary
    what = "not on a grid"
    if grid is not None:
        why = "which no ternary type here stores" if ternary is None else "which no type here stores in fewer bits"
        what = f"{grid.description(source.shape)}, {why}"
    if kept is not None:
        return TensorPlan(kept, f"{what}: passthrough", exact=True)
    if request.max_bits is not None:
        plan = least_error(spec, source, request.target, request.max_bits)
        if plan is not None:
            return plan
        if request.fallback is None:
            raise TensorError(
                f"{spec.source}: rows of {spec.shape[-1]} values fit no type of at most {request.max_bits:g} bits per "
                f"weight for {request.target}; raise --max-bits, or add --fallback f16"
            )
    return _smallest_float(spec, source, what)


def _smallest_ternary(spec: TensorSpec, grid: Grid | None, target: str) -> TensorPlan | None:
    if grid is None:
        return None
    fitting = (codec for name in ternary_types(target) if grid.fits(codec := ternary_codec(name)))
    return next((_exact_ternary(spec, codec, grid) for codec in fitting), None)


def _beats(kept: Encoder, plan: TensorPlan, target: str) -> bool:
    """Whether a GGUF tensor's own type is smaller than the planned one, or as small and, unlike that, exact.

    A type that is known to run slowly on the target isn't chosen, as it isn't for other tensors.
    """
    own, planned = kept.codec, plan.codec
    if own.name in codecs() and own.name not in (*ternary_types(target), *float_types(target)):
        return False
    if own.bits_per_weight == planned.bits_per_weight:
        return not plan.exact
    return own.bits_per_weight < planned.bits_per_weight


def _smallest_float(spec: TensorSpec, source: SourceTensor, what: str) -> TensorPlan:
    *smaller, largest = FLOATS
    for name in smaller:
        plan = _as_floats(spec, source, float_codec(name), f"{what}: kept as {name.upper()}")
        if plan.exact:
            return plan
    return _as_floats(spec, source, float_codec(largest), f"{what}: kept as {largest.upper()}")


def _ternary_types_for(grid: Grid) -> list[TernaryCodec]:
    return [codec for codec in ternary_codecs().values() if grid.fits(codec)]


def _ways_out(source: SourceTensor, grid: Grid) -> str:
    """Return advice for the error message: the types that store the tensor, or else how to lose least."""
    exact = "exact" if grid.fp16_error == 0 else "exact, except for scales rounded to fp16,"
    types = ", ".join(f"--type {name}" for name in _exact_types(source, grid))
    return f"{exact} are {types}" if types else "--type auto stores it exactly, or with --max-bits BITS at least error"


def _exact_types(source: SourceTensor, grid: Grid) -> list[str]:
    """Return the types for linear layers that store the tensor's codes exactly, smallest first."""
    known = codecs()
    floats = [name for name in FLOATS[:2] if float_codec(name).holds(source.dtype)]
    ternary = [codec.name for codec in _ternary_types_for(grid)]
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
