"""Open a model to convert, whatever its format."""

from __future__ import annotations

from pathlib import Path

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.reader import is_gguf
from tritgguf.converter.model.gguf import open_gguf_model
from tritgguf.converter.model.hf import open_hf_model
from tritgguf.converter.model.model import Model
from tritgguf.converter.tokenizer import TokenIdsProvider


def open_model(
    path: Path,
    *,
    load_tokenizer: bool = True,
    token_ids: TokenIdsProvider | None = None,
    lora: Path | None = None,
    values: bool = True,
) -> Model:
    """Open a Hugging Face folder or a GGUF file; raise TritggufError where it can't be converted.

    `lora` is the folder of a PEFT adapter to merge into the weights of a Hugging Face folder.
    `values` tells whether a GGUF file holds more than its header.
    """
    if not is_gguf(path):
        return open_hf_model(path, load_tokenizer=load_tokenizer, lora=lora)
    if lora is not None:
        raise UnsupportedError(
            f"{path} is a GGUF file, whose tensors are named and ordered otherwise than the adapter's; give the "
            "Hugging Face folder that it was made from"
        )
    return open_gguf_model(path, token_ids, values=values)
