"""Plan a whole file."""

from __future__ import annotations

from gguf import GGML_QUANT_VERSION, Keys

from tritgguf.converter.core.parallel import n_threads
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, joined, uint32
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.calibration import TUNED_STEPS
from tritgguf.converter.planning.choose_types import choose_types
from tritgguf.converter.planning.file_plan import FilePlan, TensorPlan
from tritgguf.converter.planning.importance import require_effect
from tritgguf.converter.planning.key_overrides import notes as override_notes
from tritgguf.converter.planning.key_overrides import overridden
from tritgguf.converter.planning.layout import lay_out
from tritgguf.converter.planning.request import Request, require_taken
from tritgguf.converter.planning.tensor_types import require_used
from tritgguf.converter.planning.type_notes import type_notes
from tritgguf.converter.quant.grids import find_grid

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
    require_used(request.tensor_types, model.specs)
    if model.only_floats is not None and (request.type is None or request.type.name not in NEARLY_EXACT):
        types = ", ".join(f"--type {name}" for name in NEARLY_EXACT)
        raise UnsupportedError(f"{model.path.name}: {model.only_floats}; ask for a type that keeps them: {types}")
    _require_choice(model, request)
    total = sum(tensor.n_bytes for tensor in model.tensors.values()) if model.tensors else 0
    report = counted(progress, "reading", total)
    tensors = choose_types(
        model.specs, model.tensors, request, n_threads(threads), report, scale_tensors=model.scale_tensors
    )
    metadata = joined(model.metadata, type_metadata(tensors, model.file_type))
    if request.imatrix is not None:
        require_effect(request.imatrix, tensors, request.method)
        metadata |= request.imatrix.provenance()
    if request.calibration is not None and request.calibration.tune:
        metadata.setdefault(TUNED_STEPS, uint32(request.calibration.tune))
    notes = (*model.notes, *type_notes(tensors, request), *override_notes(metadata, request.overrides))
    metadata = overridden(metadata, request.overrides)
    return FilePlan(lay_out(metadata, tensors, request.max_bytes), notes)


def _require_choice(model: Model, request: Request) -> None:
    """Raise UnsupportedError where only the user can choose a type: without weights, or where an adapter takes them
    off their grid.
    """
    if request.type is None and _without_values(model):
        raise UnsupportedError(
            "the weights aren't here, so no exact type can be chosen: add --type, such as --type tq2_0; inspect lists "
            "the file's size with each type"
        )
    if request.max_bits is not None:
        return
    for spec in model.specs:
        asked = spec.role != "linear" or request.asked(spec).codec is not None
        tensor = None if asked else model.unmerged.get(spec.source)
        grid = find_grid(tensor) if tensor is not None else None
        if tensor is not None and grid is not None and not grid.outliers:
            raise UnsupportedError(
                f"{spec.source}: without the adapter {grid.description(tensor.shape)}, with it they are on none, and "
                "no ternary type holds them exactly: add --type f16 to keep them nearly as they are, or --type tq2_0 "
                "to quantize them anew, with loss"
            )


def _without_values(model: Model) -> bool:
    return model.tensors is None or any(tensor.described for tensor in model.tensors.values())


def type_metadata(tensors: tuple[TensorPlan, ...], source_type: int | None) -> Metadata:
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
