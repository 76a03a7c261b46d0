"""Look at every tensor and choose its type: exact where asked or possible, else what the user allowed, else stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.sizes import parse_size
from tritgguf.converter.core.tensors import Floats, SourceTensor
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.gguf_io.reader import GgufTensor
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.grid_types import by_known_grid, least_error
from tritgguf.converter.planning.targets import refuses, ternary_types
from tritgguf.converter.quant.codec import Codec, FloatCodec, Stored, TernaryCodec, codec_named, codecs
from tritgguf.converter.quant.grids import Grid, find_grid
from tritgguf.converter.quant.method import Method, method_named

AUTO = "auto"
FLOATS = ("f16", "bf16", "f32")  # smallest first; the last holds every float


@dataclass(frozen=True)
class Request:
    """What the user asked for; `type` None means the smallest exact type for the target."""

    type: Codec | None
    target: str
    method: Method
    fallback: Codec | None
    embedding: Codec | None
    output: Codec | None
    allow_lossy: bool
    max_bits: float | None = None
    max_bytes: int | None = None

    @classmethod
    def named(
        cls,
        type: str,
        method: str,
        *,
        target: str = "cpu",
        fallback: str | None = None,
        embedding_type: str | None = None,
        output_type: str | None = None,
        allow_lossy: bool = False,
        max_bits: float | None = None,
        max_shard_size: int | str | None = None,
    ) -> Request:
        """Look the names up; raise UnsupportedError listing what there is."""
        choices = [AUTO, *(name for name, codec in codecs().items() if codec.for_linear)]
        if type not in choices:
            raise UnsupportedError(f"unknown tensor type {type!r}; expected one of {', '.join(choices)}")
        if fallback not in (None, "f16"):
            raise UnsupportedError(f"unknown fallback {fallback!r}; expected f16")
        if max_bits is not None and type != AUTO:
            raise UnsupportedError(f"--max-bits is for --type {AUTO}: {type} has the bits that it has")
        ternary_types(target)
        return cls(
            None if type == AUTO else codec_named(type),
            target,
            method_named(method),
            codec_named(fallback) if fallback else None,
            codec_named(embedding_type) if embedding_type else None,
            codec_named(output_type) if output_type else None,
            allow_lossy,
            max_bits,
            None if max_shard_size is None else parse_size(max_shard_size),
        )


def survey(
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, SourceTensor] | None,
    request: Request,
    threads: int,
    progress: Step,
    *,
    scale_tensors: bool = False,
) -> tuple[TensorPlan, ...]:
    """Return a plan per tensor, in order; each tensor is read until it is known what holds it.

    `scale_tensors` says that the graph honours `.scale` tensors, which keep a scale exact that fp16 would round.
    `progress` is called with the bytes on disk of each tensor that is done.
    """

    def choose(spec: TensorSpec) -> list[TensorPlan]:
        if spec.data is not None:
            return [TensorPlan(spec, codec_named("f32"), f"{spec.role}: F32", exact=True)]
        plan = choose_type(spec, tensors[spec.source] if tensors is not None else None, request)
        return with_scale_tensor(plan) if scale_tensors else [plan]

    plans: list[TensorPlan] = []
    for spec, chosen in zip(specs, parallel(choose, specs, threads), strict=True):
        plans += chosen
        progress(tensors[spec.source].n_bytes if tensors is not None and spec.data is None else 0)
    return tuple(plans)


def choose_type(spec: TensorSpec, source: SourceTensor | None, request: Request) -> TensorPlan:
    """Return one tensor's plan; `source` is None where there are no weights."""
    if spec.role == "linear":
        return _choose_linear(spec, source, request)
    wanted = {"embedding": request.embedding, "output": request.output}.get(spec.role)
    if wanted is None and isinstance(source, GgufTensor) and _carried(spec, source, request):
        return TensorPlan(spec, Stored(source.ggml_type), f"{spec.role}: carried over as it is", exact=True)
    codec = wanted or codec_named("f16" if spec.role in ("embedding", "output") else "f32")
    reason = f"{spec.role}: {codec.name.upper()}"
    if source is None:
        return TensorPlan(_fitting(spec, codec), codec, reason, None)
    return _as_asked(_fitting(spec, codec), source, codec, reason, request)


def _carried(spec: TensorSpec, source: GgufTensor, request: Request) -> bool:
    """Whether a tensor's stored type may stay; TensorError where the target refuses it and nothing can replace it."""
    refused = refuses(request.target, source.dtype)
    if refused and spec.role not in ("linear", "embedding", "output"):
        raise TensorError(
            f"{spec.source} is {source.dtype}, which {request.target} refuses, and no linear layer: "
            "start from the model in another type"
        )
    return not refused


def require_taken(request: Request) -> None:
    """Raise UnsupportedError where a type was asked for that the target refuses."""
    for option, codec in (
        ("type", request.type),
        ("embedding-type", request.embedding),
        ("output-type", request.output),
    ):
        if codec is not None and refuses(request.target, codec.name):
            instead = "q2_k holds the same values exactly" if codec.block == 256 else "q2_k or q4_0 hold them exactly"
            raise UnsupportedError(
                f"--{option} {codec.name} contradicts --for {request.target}: Ollama since 0.31.2 refuses files with "
                f"{codec.name.upper()} tensors; leave --{option} out, {instead}"
            )


def _fitting(spec: TensorSpec, codec: Codec) -> TensorSpec:
    if spec.shape[-1] % codec.block:
        raise TensorError(
            f"{spec.source}: rows of {spec.shape[-1]} values don't fit {codec.name}'s blocks of {codec.block}"
        )
    return spec


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


def _as_asked(spec: TensorSpec, source: SourceTensor | None, codec: Codec, reason: str, request: Request) -> TensorPlan:
    if source is None:
        return TensorPlan(spec, codec, reason)
    if isinstance(codec, FloatCodec):
        plan = _as_floats(spec, source, codec, reason)
        return by_known_grid(plan, source, find_grid(source)) if codec.grid_levels and not plan.exact else plan
    return _as_ternary(spec, source, codec, find_grid(source), request)


def _as_floats(spec: TensorSpec, source: SourceTensor, codec: FloatCodec, reason: str) -> TensorPlan:
    if codec.holds(source.dtype):
        return TensorPlan(spec, codec, reason, exact=True)
    for _, values in source.chunks():
        if not codec.keeps(values):
            reason = f"{reason}; {source.dtype} values outside {codec.name.upper()} are rounded"
            return TensorPlan(spec, codec, reason, exact=False)
    return TensorPlan(spec, codec, reason, exact=True)


def _as_ternary(
    spec: TensorSpec, source: SourceTensor, codec: Codec, grid: Grid | None, request: Request
) -> TensorPlan:
    """Store a tensor in a ternary type that was asked for."""
    if grid is not None and grid.fits(codec.block):
        return _exact_ternary(spec, codec, grid)
    rounded = f"rounded by {request.method.name}, which loses quality"
    if grid is None:
        return TensorPlan(spec, codec, f"not on a ternary grid: {rounded}", exact=False)
    known = by_known_grid(TensorPlan(spec, codec, ""), source, grid)
    if known.codec is not codec and (request.allow_lossy or not _ternary_types_for(grid)):
        return known
    what = describe(grid, source)
    if not request.allow_lossy:
        error = relative_error(source, codec, request.method) if known.error is None else known.error
        raise TensorError(
            f"{spec.source}: {what}, which {codec.name} can't hold: storing it would change the weights by "
            f"{error:.0%} (relative error); {_ways_out(source, grid)}; --allow-lossy goes on all the same"
        )
    return TensorPlan(spec, codec, f"{what}: {rounded}", exact=False)


def _exact_ternary(spec: TensorSpec, codec: Codec, grid: Grid) -> TensorPlan:
    zeros = "" if grid.zeros is None else f", {grid.zeros:.0%} zeros"
    found = f"on a ternary grid per {grid.extent}{zeros}"
    if grid.fp16_error == 0:
        return TensorPlan(spec, codec, found, exact=True, grid=grid)
    reason = f"{found}; codes exact, scale rounded to fp16 by {grid.fp16_error:.1e}"
    return TensorPlan(spec, codec, reason, exact=False, grid=grid)


def _smallest_exact(spec: TensorSpec, source: SourceTensor | None, request: Request) -> TensorPlan:
    if source is None:
        raise UnsupportedError("no weights here to choose exact types by: give --type, such as --type tq2_0")
    row_length = spec.shape[-1]
    grid = find_grid(source)
    if grid is not None:
        for name in ternary_types(request.target):
            codec = codec_named(name)
            if grid.fits(codec.block):
                return _exact_ternary(spec, codec, grid)
    what = "not on a grid" if grid is None else f"{describe(grid, source)}, which no ternary type here holds"
    if isinstance(source, GgufTensor) and _carried(spec, source, request):
        return TensorPlan(spec, Stored(source.ggml_type), f"{what}: carried over as it is", exact=True)
    if request.max_bits is not None:
        plan = least_error(TensorPlan(spec, codec_named(FLOATS[-1]), ""), source, request.target, request.max_bits)
        if plan is not None:
            return plan
        if request.fallback is None:
            raise TensorError(
                f"{spec.source}: rows of {row_length} values fit no type of at most {request.max_bits:g} bits per "
                f"weight for {request.target}; give more with --max-bits, or add --fallback f16"
            )
    for name in FLOATS:
        codec = codec_named(name)
        assert isinstance(codec, FloatCodec)
        plan = _as_floats(spec, source, codec, f"{what}: kept as {name.upper()}")
        if plan.exact:
            return plan
    raise AssertionError(f"{FLOATS[-1]} holds every float")


def describe(grid: Grid, source: SourceTensor) -> str:
    """Say in words what grid a tensor is on."""
    strays = f", but {grid.strays} of {int(np.prod(source.shape))} values are off it" if grid.strays else ""
    kind = "ternary" if grid.levels == 3 else f"{grid.levels}-level"
    return f"its values are on a {kind} grid per {grid.extent}{strays}"


def _ternary_types_for(grid: Grid) -> list[Codec]:
    return [codec for codec in codecs().values() if isinstance(codec, TernaryCodec) and grid.fits(codec.block)]


def _ways_out(source: SourceTensor, grid: Grid) -> str:
    """Say which types hold the tensor, or where none does, how to find the one that loses least."""
    exact = "exact" if grid.fp16_error == 0 else "exact but for scales rounded to fp16"
    types = ", ".join(f"--type {name}" for name in _exact_types(source, grid))
    return f"{exact} are {types}" if types else "--max-bits BITS takes the type that loses least, f32 loses nothing"


def _exact_types(source: SourceTensor, grid: Grid) -> list[str]:
    """Return the types for linear layers that hold the tensor, smallest first."""
    found = _ternary_types_for(grid)
    floats = [
        c for c in (codec_named(name) for name in FLOATS[:2]) if isinstance(c, FloatCodec) and c.holds(source.dtype)
    ]
    return [c.name for c in sorted([*found, *floats], key=lambda c: c.block_bytes / c.block)]


def relative_error(source: SourceTensor, codec: Codec, method: Method) -> float:
    """Return |stored - weights| / |weights| over the whole tensor, were a method to round it."""
    error = total = 0.0
    for _, values in source.chunks():
        error += float(((method.code(Floats.of(values), codec.block).dequantize() - values) ** 2).sum())
        total += float((values**2).sum())
    return float(np.sqrt(error / total)) if total else 0.0


def with_scale_tensor(plan: TensorPlan) -> list[TensorPlan]:
    """Where fp16 would round a tensor's one scale, keep it as a float32 `.scale` tensor instead."""
    grid = plan.grid
    if grid is None or not grid.scale or grid.fp16_error == 0 or plan.spec.role != "linear":
        return [plan]
    name = plan.spec.name.removesuffix(".weight") + ".scale"
    scale = TensorSpec(plan.spec.source, name, (1,), "scale", data=np.array([grid.scale], np.float32))
    reason = plan.reason.split(";")[0] + "; its scale is kept as float32 beside it"
    exact = replace(plan, exact=True, reason=reason, unit_scale=True)
    return [exact, TensorPlan(scale, codec_named("f32"), "scale of the tensor before it", exact=True)]
