"""Notes on what the choice of types costs in quality and speed."""

from __future__ import annotations

from collections.abc import Sequence

from tritgguf.converter.planning import fastest_exact
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.grid_types import TERNARY
from tritgguf.converter.planning.importance import importance_note
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.targets import reads_rows, slow_here
from tritgguf.converter.quant.codec import codecs, ternary_codec


def type_notes(tensors: Sequence[TensorPlan], request: Request) -> list[str]:
    """Return the notes, one line each."""
    linear = [tensor for tensor in tensors if tensor.spec.role == "linear"]
    ends = [tensor for tensor in tensors if tensor.spec.role in ("embedding", "output")]
    notes = [*_loss(tensors, linear, ends, request), *_fallbacks(linear)]
    if request.type is None and request.max_bits is None and not any(tensor.codec.ternary for tensor in linear):
        notes.append(
            "no linear tensor is on a grid that a ternary type stores: all keep their values; --type tq2_0 makes them "
            "ternary, with loss; --max-bits chooses smaller types of least error"
        )
    chosen_for_speed = fastest_exact.notes(tensors, request.seconds_per_weight)
    return [*notes, *_lookups(ends, request.target), *_speed(linear, ends, request), *chosen_for_speed]


def _loss(
    tensors: Sequence[TensorPlan], linear: Sequence[TensorPlan], ends: Sequence[TensorPlan], request: Request
) -> list[str]:
    notes = []
    ternary = [tensor for tensor in tensors if tensor.codec.ternary]
    rounded = [] if request.calibration else [tensor for tensor in ternary if tensor.rounded]
    if rounded and request.method.levels == TERNARY:
        notes.append(
            f"{len(rounded)} of {len(ternary)} ternary tensors weren't trained ternary: with three levels the model "
            "will likely be useless; --type f16 keeps its quality"
        )
    elif rounded:
        notes.append(
            f"{len(rounded)} of {len(ternary)} tensors in {rounded[0].codec.name} are quantized to "
            f"{request.method.levels} levels: a 2-bit model, not a ternary one, and likely a poor one; --type f16 "
            "keeps its quality"
        )
    if request.imatrix is not None:
        notes.append(importance_note(request.imatrix, tensors))
    if lossy := [tensor for tensor in linear if tensor.error]:
        notes.append(
            f"{len(lossy)} of {len(linear)} linear tensors aren't stored exactly: relative error {_spread(lossy)}; "
            "--type f16 loses almost nothing"
        )
    notes += [
        f"{tensor.spec.name} isn't stored exactly as {tensor.codec.name}: relative error {tensor.error:.2g}"
        for tensor in ends
        if tensor.error
    ]
    return notes


def _fallbacks(linear: Sequence[TensorPlan]) -> list[str]:
    fallen = [tensor for tensor in linear if tensor.fallback]
    if not fallen:
        return []
    return [
        f"{len(fallen)} linear tensors are stored as {fallen[0].codec.name}: their rows aren't a multiple of the "
        "requested type's block"
    ]


def _lookups(ends: Sequence[TensorPlan], target: str) -> list[str]:
    return [
        f"not every program --for {target} looks rows up in {tensor.codec.name}, the type of {tensor.spec.name}; by "
        "default llama.cpp keeps token embeddings on the CPU, which does"
        for tensor in ends
        if tensor.spec.role == "embedding" and tensor.codec.name in codecs()
        if not reads_rows(target, tensor.codec.name)
    ]


def _speed(linear: Sequence[TensorPlan], ends: Sequence[TensorPlan], request: Request) -> list[str]:
    if request.target != "cpu" or not slow_here("q2_0"):
        return []
    # Rows of the embeddings are looked up, unless they are the output layer too.
    multiplied = [*linear, *(tensor for tensor in ends if tensor.spec.role == "output" or len(ends) == 1)]
    if any(tensor.codec.name == "q2_0" for tensor in multiplied):
        if not slow_here("q2_0", request.fast_here):
            return [
                "q2_0 runs fast here with tritgguf's own CPU kernels; other programs have no fast code for it on x86: "
                "--for any chooses types that are fast everywhere"
            ]
        return ["q2_0 has no fast code on x86: expect a tenth of the speed of other ternary types there"]
    if request.type is None and any(_only_fine_types_fit(tensor) for tensor in linear):
        return ["q2_0 would hold these weights in half the size of q4_0, but has no fast code on x86"]
    return []


def _spread(tensors: Sequence[TensorPlan]) -> str:
    """Return the smallest and the largest relative error of the plans."""
    errors = sorted(tensor.error for tensor in tensors if tensor.error is not None)
    return f"{errors[0]:.2g} to {errors[-1]:.2g}"


def _only_fine_types_fit(tensor: TensorPlan) -> bool:
    return tensor.codec.name == "q4_0" and tensor.grid is not None and tensor.grid.fits(ternary_codec("q2_0"))
