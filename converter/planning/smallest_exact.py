"""The smallest type that holds a tensor exactly on the target, or the fastest one here: what `auto` means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats, Encoder, OnGrid, Passthrough
from tritgguf.converter.planning.fastest_exact import fastest, is_faster, words
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.grid_types import least_error
from tritgguf.converter.planning.request import Asked, Request
from tritgguf.converter.planning.targets import float_types, refuses, ternary_types_for
from tritgguf.converter.quant.codec import AnyGgmlType, FloatCodec, TernaryCodec, codecs, float_codec, ternary_codec
from tritgguf.converter.quant.grids import Grid, find_grid

FLOATS = ("f16", "bf16", "f32")  # smallest first; f32 stores every float exactly
REPLACEABLE = ("linear", "embedding", "output")  # the graph accepts any type for tensors of these roles


def smallest_exact(
    spec: TensorSpec,
    source: SourceTensor | None,
    asked: Asked,
    request: Request,
    *,
    tied: bool,
    grid_of: Callable[[SourceTensor], Grid | None] = find_grid,
) -> TensorPlan:
    """Return the plan of a linear layer, the token embeddings or the output layer in the smallest exact type.

    With `tied` the embeddings are the output layer too. Of exact types whose speed on this computer is known, a larger
    one is chosen if it is faster. Raises UnsupportedError if there are no weights.
    """
    if source is None or source.described:
        raise UnsupportedError(
            f"no weights here, so no exact type can be chosen: add {asked.option.split()[0]}, such as "
            f"{asked.option}{'tq2_0' if spec.role == 'linear' else 'f16'}"
        )
    kept = passthrough(spec, source, request.target)
    try:
        grid = grid_of(source)
    except UnsupportedError:
        if kept is None or spec.role == "linear":
            raise
        return TensorPlan(kept, f"{spec.role}: its values can't be read here: passthrough", exact=True)
    names = ternary_types_for(request.target, spec.role, tied=tied, fast_here=request.fast_here)
    looked_up = spec.role == "embedding" and not tied
    seconds = {} if looked_up or request.target != "cpu" else request.seconds_per_weight
    ternary = _best_ternary(spec, grid, names, seconds)
    chosen_from = (*names, *float_types(request.target))
    if ternary is not None and (kept is None or not _beats(kept, ternary, chosen_from, seconds)):
        return ternary
    what = "not on a grid"
    if grid is not None:
        why = "which no ternary type here stores" if ternary is None else "which no type here stores in fewer bits"
        what = f"{grid.description(source.shape)}, {why}"
    if kept is not None:
        return TensorPlan(kept, f"{what}: passthrough", exact=True)
    if spec.role != "linear":
        return as_floats(spec, source, float_codec(FLOATS[0]), f"{spec.role}: {what}: {FLOATS[0].upper()}")
    return _not_on_grid(spec, source, grid, what, request)


def _not_on_grid(spec: TensorSpec, source: SourceTensor, grid: Grid | None, what: str, request: Request) -> TensorPlan:
    """Return the plan of a linear layer in a type of at most --max-bits, or in the smallest float type."""
    if request.max_bits is not None:
        plan = least_error(spec, source, grid, request.target, request.max_bits)
        if plan is not None:
            return plan
        if request.fallback is None:
            raise TensorError(
                f"{spec.source}: rows of {spec.shape[-1]} values fit no type of at most {request.max_bits:g} bits per "
                f"weight for {request.target}; raise --max-bits, or add --fallback f16"
            )
    return _smallest_float(spec, source, what)


def passthrough(spec: TensorSpec, source: SourceTensor | None, target: str) -> Encoder | None:
    """Return the encoder that keeps a GGUF tensor's bytes; None for other tensors, or if the target refuses the type.

    Raises TensorError if the target refuses the type and the graph accepts no other for this tensor.
    """
    if source is None or source.ggml_type is None:
        return None
    if not refuses(target, source.dtype):
        return Passthrough(spec, AnyGgmlType(source.ggml_type))
    if spec.role not in REPLACEABLE:
        raise TensorError(
            f"{spec.source} is {source.dtype}, which {target} refuses, and this tensor can't be stored as "
            "another type: start from a file of the model in another type, or convert for another target (--for)"
        )
    return None


def as_floats(spec: TensorSpec, source: SourceTensor, codec: FloatCodec, reason: str) -> TensorPlan:
    """Return the plan of a tensor in a float type, and whether it keeps every value, if that can be known."""
    encoder = AsFloats(spec, codec)
    if source.changed:
        return TensorPlan(encoder, f"{reason}; {source.changed}", exact=False)
    if codec.holds(source.dtype):
        return TensorPlan(encoder, reason, exact=True)
    if source.described:
        return TensorPlan(encoder, reason)
    for _, values in source.chunks():
        if not codec.keeps(values):
            reason = f"{reason}; {source.dtype} values outside {codec.name.upper()} are rounded"
            return TensorPlan(encoder, reason, exact=False)
    return TensorPlan(encoder, reason, exact=True)


def on_grid(spec: TensorSpec, codec: TernaryCodec, grid: Grid, why: str = "") -> TensorPlan:
    """Return the plan of a tensor with its own codes, in a type that the grid fits; `why` it is that type."""
    zeros = "" if grid.zeros is None else f", {grid.zeros:.0%} zeros"
    found = f"on a {grid.kind} grid per {grid.extent}{zeros}{why}"
    encoder = OnGrid(spec, codec, grid)
    if grid.fp16_error == 0:
        return TensorPlan(encoder, found, exact=True)
    reason = f"{found}; codes exact, scale rounded to fp16 by {grid.fp16_error:.1e}"
    return TensorPlan(encoder, reason, exact=False)


def _best_ternary(
    spec: TensorSpec, grid: Grid | None, names: tuple[str, ...], seconds: Mapping[str, float]
) -> TensorPlan | None:
    fitting = [codec for name in names if grid is not None and grid.fits(codec := ternary_codec(name))]
    if grid is None or not fitting:
        return None
    chosen, smallest = fastest(fitting, seconds), fitting[0]
    if chosen is smallest:
        return on_grid(spec, smallest, grid)
    why = f", {words(chosen, smallest, seconds)}"
    return replace(on_grid(spec, chosen, grid, why), smallest=smallest)


def _beats(kept: Encoder, plan: TensorPlan, names: tuple[str, ...], seconds: Mapping[str, float]) -> bool:
    """Whether a GGUF tensor's own type is smaller than the planned one, or as small and, unlike that, exact.

    A known type that isn't among `names`, such as one that runs slowly on the target, isn't chosen for other tensors
    either; nor is one that is slower than the planned type here.
    """
    own, planned = kept.codec, plan.codec
    if own.name in codecs() and own.name not in names:
        return False
    if own.bits_per_weight == planned.bits_per_weight:
        return not plan.exact
    if is_faster(planned, own, seconds):
        return False
    return own.bits_per_weight < planned.bits_per_weight


def _smallest_float(spec: TensorSpec, source: SourceTensor, what: str) -> TensorPlan:
    """Return the plan in the smallest float type that is exact; products of packed integers may be rounded to F16.

    Programs that run packed checkpoints round these products too.
    """
    *smaller, largest = FLOATS
    for name in smaller:
        plan = as_floats(spec, source, float_codec(name), f"{what}: kept as {name.upper()}")
        if plan.exact:
            return plan
    if source.dtype not in FLOAT_DTYPES and source.ggml_type is None and _in_range(source, float_codec(smaller[0])):
        return as_floats(spec, source, float_codec(smaller[0]), f"{what}: kept as {smaller[0].upper()}")
    return as_floats(spec, source, float_codec(largest), f"{what}: kept as {largest.upper()}")


def _in_range(source: SourceTensor, codec: FloatCodec) -> bool:
    """Whether the type stores all values, rounded or not."""
    try:
        for _, values in source.chunks():
            codec.encode(values)
    except TensorError:
        return False
    return True
