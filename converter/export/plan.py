"""Plan the whole folder before it is written: the entries of each tensor, and the file that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritgguf.converter.checkpoint.config_json import named_classes, read_config_json
from tritgguf.converter.checkpoint.folder import Checkpoint, open_checkpoint
from tritgguf.converter.checkpoint.packer import Packer
from tritgguf.converter.checkpoint.packings.plain import FloatPacker
from tritgguf.converter.checkpoint.safetensors_layout import Entry, Shard, shards
from tritgguf.converter.checkpoint.weights import files_with_weights
from tritgguf.converter.core.dtypes import BY_NAME_IN_CONFIG, FLOAT_DTYPES
from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.export.scheme import Scheme
from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf
from tritgguf.converter.model.architecture import TensorSpec, architecture_for, linear_names, stored_specs
from tritgguf.converter.model.from_gguf import model_from_gguf
from tritgguf.converter.model.match import match_tensors
from tritgguf.converter.quant.grids import Grid, find_grid
from tritgguf.converter.tokenizer.from_gguf import tokenizer_files

SHARD_BYTES = 4_990_000_000  # with its header a file stays below 5 GB
HEADERS_ALONE = "only the headers of the weights are here"
UNKNOWN = "the loss isn't known"
ROUNDS_ITSELF = "BitnetForCausalLM"  # 1bitLLM's class makes its weights ternary whatever config.json says


@dataclass(frozen=True)
class Form:
    """What the user chose. `scheme` None dequantizes a packed model; `dtype` is that of the dequantized floats."""

    scheme: Scheme | None
    dequantized: bool
    dtype: str = "F16"
    packs_embeddings: bool = False
    allow_lossy: bool = False
    shard_bytes: int = SHARD_BYTES

    @property
    def name(self) -> str:
        return self.scheme.name if self.scheme else "dequantized"


@dataclass(frozen=True)
class TensorExport:
    """One tensor of the model: `scheme` quantizes it, or it is a plain float; `packer` writes it.

    `source` is None if there are no weights; `grid` is the grid that its values are on already.
    """

    spec: TensorSpec
    source: SourceTensor | None
    scheme: Scheme | None
    packer: Packer
    grid: Grid | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.packer.entries(self.spec.source, self.spec.shape)

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self.entries)

    @property
    def n_weights(self) -> int:
        return math.prod(self.spec.shape)


@dataclass(frozen=True)
class ExportPlan:
    """The folder: its safetensors files, the tensors in order, and notes for the user.

    `model` is the model's folder or GGUF file; `texts` are JSON files made of a GGUF file's keys, by name.
    `packs_experts`: it holds packed experts, which transformers can't load, since it keeps a layer's in one tensor.
    """

    model: Path
    config: Mapping[str, Any]
    form: Form
    tensors: tuple[TensorExport, ...]
    shards: tuple[Shard, ...]
    notes: tuple[str, ...]
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packs_experts: bool = False

    @property
    def weight_bytes(self) -> int:
        """The exact size of the safetensors files."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def coded_bits(self) -> float:
        """Bits per weight of the quantized tensors as they are stored."""
        coded = [tensor for tensor in self.tensors if tensor.scheme]
        return 8 * sum(t.n_bytes for t in coded) / max(1, sum(t.n_weights for t in coded))

    def as_json(self) -> dict[str, Any]:
        return {
            "scheme": self.form.name,
            "weight_bytes": self.weight_bytes,
            "bits_per_weight": self.coded_bits,
            "shards": [{"file": shard.file_name, "bytes": shard.file_bytes} for shard in self.shards],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Opened:
    """A model to export: config.json, the tensors that are written, and where they are; None without weights.

    `dtypes` are those of tensors of which only the headers are here, by their names.
    """

    config: Mapping[str, Any]
    specs: list[TensorSpec]
    tensors: Mapping[str, SourceTensor] | None
    notes: list[str]
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)


def plan_export(model: Path, form: Form, threads: int, progress: Step, *, values: bool = True) -> ExportPlan:
    """Plan the folder; raise TritggufError if the checkpoint, or the GGUF file, can't be written as asked.

    `values` tells whether a GGUF file holds more than its header.
    """
    opened = _open_gguf(model, values) if is_gguf(model) else _open_folder(model, form)
    if form.dequantized and ROUNDS_ITSELF in named_classes(opened.config):
        raise UnsupportedError(
            f"config.json: {ROUNDS_ITSELF} rounds its weights to three levels each time it computes, so floats that "
            "are rounded already would change: choose a packed scheme, or convert to GGUF"
        )

    def choose(matrix: tuple[TensorSpec, SourceTensor | None]) -> TensorExport:
        return _choose(*matrix, form, opened)

    tensors = []
    for tensor in parallel(choose, _matrices(opened.specs, opened.tensors), threads):
        tensors.append(tensor)
        progress(tensor.source.n_bytes if tensor.source else 0)
    files = shards((tensor.entries for tensor in tensors), form.shard_bytes)
    notes = opened.notes
    packs_experts = not form.dequantized and any(spec.role == "linear" and spec.stored for spec in opened.specs)
    if packs_experts:
        notes.append("transformers can't load packed experts; tritgguf convert can, and --dequantized writes floats")
    return ExportPlan(model, opened.config, form, tuple(tensors), files, tuple(notes), opened.texts, packs_experts)


def weight_files(model: Path) -> list[Path]:
    """Return the files that hold a model's weights: those of a folder, or a GGUF file and its parts."""
    if not model.is_file():
        return files_with_weights(model)
    return [model] if not is_gguf(model) else list(read_gguf(model).paths)


def _open_folder(folder: Path, form: Form) -> _Opened:
    raw = read_config_json(folder)
    architecture = architecture_for(raw)
    config = architecture.read_config(raw)
    specs = stored_specs(architecture.tensors(config))
    checkpoint = open_checkpoint(folder, linear_names(specs))
    if checkpoint.tensors is None:
        described = checkpoint.described or {}
        missing = HEADERS_ALONE if described else "there are no weights"
        dtypes = {name: tensor.dtype for name, tensor in described.items()}
        return _Opened(raw, specs, None, [f"{missing}: {UNKNOWN}"], dtypes=dtypes)
    found, notes = match_tensors(specs, checkpoint.tensors, config)
    _require_sense(checkpoint, found.values(), form)
    return _Opened(raw, specs, found, notes)


def _open_gguf(path: Path, values: bool) -> _Opened:
    """Open a GGUF file for the way back; its tokenizer is left out, with a note, if it can't be expressed."""
    model = model_from_gguf(path, values=values)
    try:
        texts, notes = tokenizer_files(model.file.metadata), []
    except UnsupportedError as error:
        texts, notes = {}, [f"the folder gets no tokenizer: {error}"]
    if not values:
        dtypes = {name: tensor.dtype for name, tensor in model.tensors.items()}
        return _Opened(model.config, model.specs, None, [f"{HEADERS_ALONE}: {UNKNOWN}", *notes], texts, dtypes)
    return _Opened(model.config, model.specs, model.tensors, [*model.notes, *notes], texts)


def _matrices(
    specs: Sequence[TensorSpec], found: Mapping[str, SourceTensor] | None
) -> Iterator[tuple[TensorSpec, SourceTensor | None]]:
    """Yield the model's tensors; of experts each matrix on its own, as schemes quantize it and checkpoints name it."""
    for spec in specs:
        matrices = spec.matrices()
        if found is None:
            yield from ((matrix, None) for matrix in matrices)
            continue
        tensor = found[spec.source]
        # A tensor of three dimensions that checkpoints store as one isn't several matrices: a convolution.
        yield from zip(matrices, tensor.matrices() if spec.stored else [tensor], strict=True)


def _require_sense(checkpoint: Checkpoint, tensors: Iterable[SourceTensor], form: Form) -> None:
    if form.scheme is None and all(tensor.dtype in FLOAT_DTYPES for tensor in tensors):
        raise UnsupportedError(
            f"{checkpoint.folder} holds {checkpoint.packing}: there is nothing to dequantize; "
            "--scheme would quantize it"
        )


def _choose(spec: TensorSpec, source: SourceTensor | None, form: Form, opened: _Opened) -> TensorExport:
    scheme = form.scheme
    coded_roles = ("linear", "embedding", "output") if form.packs_embeddings else ("linear",)
    if scheme is None or spec.role not in coded_roles:
        dtype = opened.dtypes.get(spec.source) if source is None else source.dtype
        return TensorExport(spec, source, None, FloatPacker(_plain_dtype(dtype, form, opened.config)))
    grid = find_grid(source) if source is not None else None
    if grid is not None and source is not None and not form.allow_lossy and not scheme.holds(grid, source):
        raise TensorError(
            f"{spec.source}: {grid.description(source.shape)}, which {scheme.name} can't hold; quantize the model that "
            "it was made from, or add --allow-lossy to quantize it inexactly"
        )
    scheme.packer.entries(spec.source, spec.shape)  # raises for shapes that don't fit, dequantized or not
    packer = FloatPacker(form.dtype) if form.dequantized else scheme.packer
    return TensorExport(spec, source, scheme, packer, grid)


def _plain_dtype(stored: str | None, form: Form, config: Mapping[str, Any]) -> str:
    """Return the dtype of a tensor that isn't quantized: the form's or the scheme's, else its own."""
    if form.dequantized:
        return form.dtype
    if form.scheme is not None and form.scheme.plain_dtype:
        return form.scheme.plain_dtype
    if stored in FLOAT_DTYPES:
        return stored
    return BY_NAME_IN_CONFIG.get(str(config.get("dtype") or config.get("torch_dtype")), "BF16")
