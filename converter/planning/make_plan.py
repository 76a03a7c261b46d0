"""Plan a whole file, and note what its types cost in quality and speed."""

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
from tritgguf.converter.quant.codec import ternary_codec

NEARLY_EXACT = ("f16", "bf16", "f32", "q8_0")  # types in which any weights lose next to nothing


def make_plan(model: Model, request: Request, threads: int | None, progress: Progress | None) -> FilePlan:
    """Choose a type for every tensor and lay out the file.

    `threads` is None for one per core; `progress` is called with "reading", the bytes done and the total bytes. Raises
    UnsupportedError if the file can't run on the target, TensorError if a tensor can't be stored as requested.
    """
    if model.targets is not None and request.target not in model.targets:
        architecture = model.metadata[Keys.General.ARCHITECTURE].data
        raise UnsupportedError(
            f"a {architecture} file runs in tritgguf's own runtime alone, on {', '.join(model.targets)}: it can't be "
            f"made --for {request.target}"
        )
    require_taken(request)
    if model.only_floats is not None and (request.type is None or request.type.name not in NEARLY_EXACT):
        types = ", ".join(f"--type {name}" for name in NEARLY_EXACT)
        raise UnsupportedError(f"{model.path.name}: {model.only_floats}; ask for a type that keeps them: {types}")
    total = sum(tensor.n_bytes for tensor in model.tensors.values()) if model.tensors else 0
    report = counted(progress, "reading", total)
    tensors = choose_types(
        model.specs, model.tensors, request, n_threads(threads), report, scale_tensors=model.scale_tensors
    )
    metadata = joined(model.metadata, _type_metadata(tensors, model.file_type))
    notes = (*model.notes, *_type_notes(tensors, request))
    return FilePlan(lay_out(metadata, tensors, request.max_bytes), notes)


def _type_metadata(tensors: tuple[TensorPlan, ...], source_type: int | None) -> Metadata:
    """Return the keys that depend on the types; the file's type is the one with the most bytes of linear layers.

    Tensors that a GGUF file keeps as they are count for that file's own type: Q4_K_S and Q4_K_M are mixes of the same
    types, which no tensor tells apart.
    """
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.spec.role == "linear":
            kept = source_type if tensor.encoder.keeps_bytes else None
            file_type = int(tensor.codec.file_type) if kept is None else kept
            sizes[file_type] = sizes.get(file_type, 0) + tensor.n_bytes
    return {
        Keys.General.FILE_TYPE: uint32(max(sizes, key=lambda file_type: sizes[file_type])),
        Keys.General.QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
    }


def _type_notes(tensors: tuple[TensorPlan, ...], request: Request) -> list[str]:
    """Return notes on what the choice of types costs in quality and speed."""
    notes = []
    linear = [tensor for tensor in tensors if tensor.spec.role == "linear"]
    ternary = [tensor for tensor in tensors if tensor.codec.ternary]
    if rounded := [tensor for tensor in ternary if tensor.rounded]:
        notes.append(
            f"{len(rounded)} of {len(ternary)} ternary tensors weren't trained ternary: with three levels the model "
            "will likely be useless; --type f16 keeps its quality"
        )
    if lossy := [tensor for tensor in linear if tensor.error]:
        notes.append(
            f"{len(lossy)} of {len(linear)} linear tensors aren't stored exactly: relative error {_spread(lossy)}; "
            "--type f16 loses almost nothing"
        )
    if fallen := [tensor for tensor in linear if tensor.fallback]:
        notes.append(
            f"{len(fallen)} linear tensors are stored as {fallen[0].codec.name}: their rows aren't a multiple of the "
            "requested type's block"
        )
    if request.type is None and request.max_bits is None and not ternary:
        notes.append(
            "no linear tensor is on a grid that a ternary type stores: all keep their values; --type tq2_0 makes them "
            "ternary, with loss; --max-bits chooses smaller types of least error"
        )
    if request.target == "cpu" and is_x86():
        if any(slow_on_x86(tensor.codec.name) for tensor in linear):
            notes.append("q2_0 has no fast code on x86: expect a tenth of the speed of other ternary types there")
        elif request.type is None and any(_only_fine_types_fit(tensor) for tensor in linear):
            notes.append("q2_0 would hold these weights in half the size of q4_0, but has no fast code on x86")
    return notes


def _spread(tensors: Sequence[TensorPlan]) -> str:
    """Return the smallest and the largest relative error of the plans."""
    errors = sorted(tensor.error for tensor in tensors if tensor.error is not None)
    return f"{errors[0]:.2g} to {errors[-1]:.2g}"


def _only_fine_types_fit(tensor: TensorPlan) -> bool:
    return tensor.codec.name == "q4_0" and tensor.grid is not None and tensor.grid.fits(ternary_codec("q2_0"))
