"""Open a GGUF file of any architecture as a model to convert.

Only the linear layers change; keys, vocabulary and other tensors are passed through. What only another program reads
isn't: tensors of foreign types, a Hadamard basis, keys of bitnet.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguf import Keys

from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.described_tensor import DescribedTensor
from tritgguf.converter.gguf_io.foreign_type import ForeignTensor, ForeignType, loaders
from tritgguf.converter.gguf_io.hadamard import is_rotated, read_basis
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.architecture import Architecture, TensorSpec, architectures
from tritgguf.converter.model.gguf_repairs import repaired
from tritgguf.converter.model.hub_source import source_metadata
from tritgguf.converter.model.model import Model
from tritgguf.converter.tokenizer import TokenIdsProvider, passthrough_tokenizer

# Weights of matrix products, which llama.cpp takes in any type. Not routers, convolutions and lookup tables.
LINEAR = re.compile(
    r"^blk\.\d+\.(attn_(q|k|v|qkv|output|gate)|ffn_(gate|up|down)(_exps|_shexp|_chexps)?|ssm_(in|out))\.weight$"
)
ROLES = {"token_embd.weight": "embedding", "output.weight": "output"}
INPUT_NORM = re.compile(r"_norm_in(\.|$)")
ROTATED = (
    "the weights are in a Hadamard basis (prism.hadamard.* keys), which llama.cpp doesn't compute; undone, they aren't "
    "ternary any more"
)
HEADER_ALONE = "planned from the file's header alone: which tensors the type holds exactly isn't known"
REWRITTEN = (Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION, Keys.General.ALIGNMENT)


def open_gguf_model(path: Path, token_ids: TokenIdsProvider | None = None, *, values: bool = True) -> Model:
    """Open a GGUF file; raise SourceError or UnsupportedError where it is damaged or in parts.

    `token_ids`, by default the installed provider, is asked when the file's token ids are first compared.
    Where `values` says that only the header is here, the tensors are described ones, which can be planned.
    """
    file = read_gguf(path)
    if file.architecture is None:
        raise SourceError(f"{path.name} has no {Keys.General.ARCHITECTURE}: it isn't a model, or it is damaged")
    if not any(LINEAR.match(name) for name in file.tensors):
        raise SourceError(f"{path.name} holds no linear layer under a known name, so nothing in it can become ternary")
    _require_known_graph(file)
    tensors = file.tensors if values else _described(file)
    basis = read_basis(path.name, file.metadata, tensors)
    kept = {key: value for key, value in file.metadata.items() if key not in REWRITTEN and not is_rotated((key,))}
    kept |= source_metadata(file.path)
    repair = repaired({Keys.General.ARCHITECTURE: file.metadata[Keys.General.ARCHITECTURE], **kept})
    name = repair.metadata[Keys.General.ARCHITECTURE].data
    architecture = next((known for known in architectures() if known.name == name), None)
    checked = _has_vocabulary(file) and not repair.vocabulary
    return Model(
        path=path,
        source=f"GGUF ({file.architecture})",
        specs=[_spec(tensor) for tensor in file.tensors.values()],
        tensors=tensors if basis is None else basis.undone(tensors),
        metadata=repair.metadata,
        tokenizer=passthrough_tokenizer(file.path, token_ids) if checked else None,
        notes=[
            *_foreign_notes(file),
            *repair.notes,
            *([ROTATED] if basis else []),
            *([] if values else [HEADER_ALONE]),
        ],
        scale_tensors=_takes_scales(file, architecture),
        file_type=_file_type(file) if basis is None else None,
        targets=architecture.targets if architecture else None,
        only_floats=ROTATED if basis else None,
    )


def _described(file: GgufFile) -> dict[str, SourceTensor]:
    return {name: DescribedTensor.of(tensor, file.path.name) for name, tensor in file.tensors.items()}


def _file_type(file: GgufFile) -> int | None:
    """Return what the file calls its mix of types; other programs have numbers of their own."""
    found = file.value(Keys.General.FILE_TYPE)
    return found if type(found) is int and not file.foreign else None


def _require_known_graph(file: GgufFile) -> None:
    for name in file.tensors:
        if INPUT_NORM.search(name):
            raise UnsupportedError(
                f"{file.path.name} has {name}: it is a BitNet embedding model with a norm before each layer, which no "
                "graph of llama.cpp computes"
            )


def _foreign_notes(file: GgufFile) -> list[str]:
    """Return which foreign types the file has, and what users must know about them."""
    notes = []
    for kind, tensors in _by_kind(file).items():
        notes.append(
            f"{len(tensors)} tensors such as {tensors[0].name} are {kind.numbered}, {kind.layout}, of {kind.origin}; "
            f"{loaders(kind)} such a file"
        )
        notes += [kind.remark] if kind.remark else []
    return notes


def _by_kind(file: GgufFile) -> dict[ForeignType, list[ForeignTensor]]:
    found: dict[ForeignType, list[ForeignTensor]] = {}
    for tensor in file.foreign:
        found.setdefault(tensor.kind, []).append(tensor)
    return found


def _takes_scales(file: GgufFile, architecture: Architecture | None) -> bool:
    """Whether the graph multiplies by `.scale` tensors; only foreign types have scales that fp16 rounds."""
    if architecture is None or not file.foreign or any(name.endswith(".scale") for name in file.tensors):
        return False
    return architecture.honours_scales


def _spec(tensor: SourceTensor) -> TensorSpec:
    linear = LINEAR.match(tensor.name) and len(tensor.shape) > 1
    role = "linear" if linear else ROLES.get(tensor.name, "kept")
    return TensorSpec(tensor.name, tensor.name, tensor.shape, role)


def _has_vocabulary(file: GgufFile) -> bool:
    return file.value(Keys.Tokenizer.MODEL) not in (None, "none", "no_vocab")
