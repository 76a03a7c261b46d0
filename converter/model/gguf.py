"""Open a GGUF file of any architecture as a model to convert.

Only the linear layers change; keys, vocabulary and other tensors are passed through.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguf import Keys

from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.gguf_io.reader import GgufFile, GgufTensor, read_gguf
from tritgguf.converter.model.architecture import TensorSpec, architectures
from tritgguf.converter.model.model import Model
from tritgguf.converter.tokenizer import TokenIdsProvider, passthrough_tokenizer

# Weights of matrix products, which llama.cpp takes in any type. Not routers, convolutions and lookup tables.
LINEAR = re.compile(
    r"^blk\.\d+\.(attn_(q|k|v|qkv|output|gate)|ffn_(gate|up|down)(_exps|_shexp|_chexps)?|ssm_(in|out))\.weight$"
)
ROLES = {"token_embd.weight": "embedding", "output.weight": "output"}
REWRITTEN = (Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION, Keys.General.ALIGNMENT)


def open_gguf_model(path: Path, token_ids: TokenIdsProvider | None = None) -> Model:
    """Open a GGUF file; raise SourceError or UnsupportedError where it is damaged or in parts.

    `token_ids`, by default the installed provider, is asked when the file's token ids are first compared.
    """
    file = read_gguf(path)
    if file.architecture is None:
        raise SourceError(f"{path.name} has no {Keys.General.ARCHITECTURE}: it isn't a model, or it is damaged")
    if not any(LINEAR.match(name) for name in file.tensors):
        raise SourceError(f"{path.name} holds no linear layer under a known name, so nothing in it can become ternary")
    architecture: Metadata = {Keys.General.ARCHITECTURE: file.metadata[Keys.General.ARCHITECTURE]}
    kept = {key: value for key, value in file.metadata.items() if key not in REWRITTEN}
    return Model(
        path=path,
        source=f"GGUF ({file.architecture})",
        specs=[_spec(tensor) for tensor in file.tensors.values()],
        tensors=file.tensors,
        metadata=architecture | kept,
        tokenizer=passthrough_tokenizer(file.path, token_ids) if _has_vocabulary(file) else None,
        notes=[],
        scale_tensors=False,
        file_type=file_type if type(file_type := file.value(Keys.General.FILE_TYPE)) is int else None,
        targets=next((a.targets for a in architectures() if a.name == file.architecture), None),
    )


def _spec(tensor: GgufTensor) -> TensorSpec:
    linear = LINEAR.match(tensor.name) and len(tensor.shape) > 1
    role = "linear" if linear else ROLES.get(tensor.name, "kept")
    return TensorSpec(tensor.name, tensor.name, tensor.shape, role)


def _has_vocabulary(file: GgufFile) -> bool:
    return file.value(Keys.Tokenizer.MODEL) not in (None, "none", "no_vocab")
