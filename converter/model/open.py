"""Open a model to convert, whatever its format."""

from __future__ import annotations

from pathlib import Path

from tritgguf.converter.gguf_io.reader import is_gguf
from tritgguf.converter.model.gguf import open_gguf_model
from tritgguf.converter.model.hf import open_hf_model
from tritgguf.converter.model.model import Model
from tritgguf.converter.tokenizer import TokenIdsProvider


def open_model(path: Path, *, load_tokenizer: bool = True, token_ids: TokenIdsProvider | None = None) -> Model:
    """Open a Hugging Face folder or a GGUF file; raise TritggufError where it can't be converted."""
    return open_gguf_model(path, token_ids) if is_gguf(path) else open_hf_model(path, load_tokenizer=load_tokenizer)
