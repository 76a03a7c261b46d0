"""Make the plan of a whole file, and say what its types cost."""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGML_QUANT_VERSION, Keys

from tritgguf.converter.core.parallel import n_threads
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, joined, uint32
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.choose_types import choose_types
from tritgguf.converter.planning.file_plan import FilePlan, TensorPlan
from tritgguf.converter.planning.layout import lay_out
from tritgguf.converter.planning.request import Request, require_taken
from tritgguf.converter.planning.targets import is_x86, slow_on_x86
from tritgguf.converter.quant.codec import codec_named


def make_plan(model: Model, request: Request, threads: int | None, progress: Progress | None) -> FilePlan:
    """Choose a type for every tensor and lay the file out; raise UnsupportedError where it can't run on the target."""
    if model.targets is not None and request.target not in model.targets:
        architecture = model.metadata[Keys.General.ARCHITECTURE].data
        raise UnsupportedError(
            f"a {architecture} file runs in tritgguf's own runtime alone, on {', '.join(model.targets)}: it can't be "
            f"made --for {request.target}"
        )
    require_taken(request)
    total = sum(tensor.n_bytes for tensor in model.tensors.values()) if model.tensors else 0
    report = counted(progress, "reading", total)
    tensors = choose_types(
        model.specs, model.tensors, request, n_threads(threads), report, scale_tensors=model.scale_tensors
    )
    metadata = joined(model.metadata, _type_metadata(tensors))
    notes = (*model.notes, *_type_notes(tensors, request))
    return FilePlan(lay_out(metadata, tensors, request.max_bytes), notes)


def _type_metadata(tensors: tuple[TensorPlan, ...]) -> Metadata:
    """Return the keys that follow from the types: the file's type is that of most of its linear weights."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.spec.role == "linear":
            file_type = int(tensor.codec.file_type)
            sizes[file_type] = sizes.get(file_type, 0) + tensor.n_bytes
    return {
        Keys.General.FILE_TYPE: uint32(max(sizes, key=lambda file_type: sizes[file_type])),
        Keys.General.QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
    }


def _type_notes(tensors: tuple[TensorPlan, ...], request: Request) -> list[str]:
    """Say what the choice of types costs in quality and speed."""
    notes = []
    linear = [tensor for tensor in tensors if tensor.spec.role == "linear"]
    ternary = [tensor for tensor in tensors if tensor.codec.ternary]
    if rounded := [tensor for tensor in ternary if tensor.rounded]:
        notes.append(
            f"{len(rounded)} of {len(ternary)} ternary tensors weren't trained ternary: rounding them to three levels "
            "loses so much that the model's answers will likely be useless; --type f16 keeps the model as it is"
        )
    if lossy := [tensor for tensor in linear if tensor.error]:
        notes.append(
            f"{len(lossy)} of {len(linear)} linear tensors lose something to their type: relative error "
            f"{_spread(lossy)}; --type f16 keeps them as they are"
        )
    if fallen := [tensor for tensor in linear if tensor.fallback]:
        notes.append(f"{len(fallen)} linear tensors are stored as {fallen[0].codec.name}: their rows don't fit")
    if request.type is None and request.max_bits is None and not ternary:
        notes.append(
            "no linear tensor is ternary as a type here holds it: all are kept; --type tq2_0 would make them ternary, "
            "--max-bits takes the types that lose least"
        )
    if request.target == "cpu" and is_x86():
        if any(slow_on_x86(tensor.codec.name) for tensor in linear):
            notes.append("q2_0 has no fast code on x86: expect a tenth of the speed of other ternary types there")
        elif request.type is None and any(_only_fine_types_fit(tensor) for tensor in linear):
            notes.append("q2_0 would hold these weights in half the size of q4_0, but has no fast code on x86")
    return notes


def _spread(tensors: Sequence[TensorPlan]) -> str:
    """Return the least and the largest relative error, as the plan has them."""
    errors = sorted(tensor.error for tensor in tensors if tensor.error is not None)
    return f"{errors[0]:.2g} to {errors[-1]:.2g}"


def _only_fine_types_fit(tensor: TensorPlan) -> bool:
    return tensor.codec.name == "q4_0" and tensor.grid is not None and tensor.grid.fits(codec_named("q2_0").block)
