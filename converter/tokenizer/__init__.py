"""Turn a checkpoint folder's tokenizer files into GGUF `tokenizer.*` keys that give the same token ids in llama.cpp.

tokenizer.json comes first, since transformers loads it: byte-level BPE becomes llama.cpp's tokenizer model "gpt2",
SentencePiece-style BPE becomes "llama" with scores computed from the merges. Without it tokenizer.model is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritgguf.converter.errors import TokenizerError, TritggufError
from tritgguf.converter.tokenizer.battery import battery
from tritgguf.converter.tokenizer.byte_level import byte_level_tokenizer
from tritgguf.converter.tokenizer.check import check_token_ids, passthrough_tokenizer
from tritgguf.converter.tokenizer.files import SENTENCEPIECE_MODEL, TOKENIZER_JSON, SideFiles, read_side_files
from tritgguf.converter.tokenizer.merge_scores import has_byte_pieces, merge_scored_tokenizer
from tritgguf.converter.tokenizer.reference import Reference
from tritgguf.converter.tokenizer.sentencepiece_model import sentencepiece_tokenizer
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIdsProvider, installed_provider
from tritgguf.converter.tokenizer.tokenizer_json import read_tokenizer_json

__all__ = [
    "TOKENIZER_JSON",
    "ReadTokenIds",
    "SourceTokenizer",
    "TokenIdsProvider",
    "battery",
    "check_token_ids",
    "has_tokenizer",
    "installed_provider",
    "passthrough_tokenizer",
    "read_tokenizer",
]


def has_tokenizer(folder: Path) -> bool:
    """Return whether the folder holds a file that `read_tokenizer` reads."""
    return any((folder / name).is_file() for name in (TOKENIZER_JSON, SENTENCEPIECE_MODEL))


def read_tokenizer(folder: Path, *, n_vocab: int, config: Mapping[str, Any], load: bool = True) -> SourceTokenizer:
    """Read the tokenizer of a checkpoint folder for a model with `n_vocab` embedding rows.

    `config` is the parsed config.json. With `load` the tokenizers library loads tokenizer.json here, otherwise when it
    first encodes. Raises TokenizerError if there is no tokenizer, if one of its files is damaged, or if llama.cpp can't
    give the same ids.
    """
    if not has_tokenizer(folder):
        raise TokenizerError(
            f"no tokenizer in {folder}: looked for {TOKENIZER_JSON} and {SENTENCEPIECE_MODEL}; "
            "copy the one that belongs to the model into the folder"
        )
    files = read_side_files(folder, config)
    if not (folder / TOKENIZER_JSON).is_file():
        return sentencepiece_tokenizer(files, n_vocab)
    try:
        tokenizer = _tokenizer_json(files, n_vocab)
    except TritggufError:
        raise
    except Exception:  # the tokenizers library raises Exception itself
        Reference(folder).load()  # its error names what is wrong with the file
        raise
    if load:
        tokenizer.load()
    return tokenizer


def _tokenizer_json(files: SideFiles, n_vocab: int) -> SourceTokenizer:
    source = read_tokenizer_json(files)
    if has_byte_pieces(source):
        return merge_scored_tokenizer(source, files, n_vocab)
    return byte_level_tokenizer(source, files, n_vocab)
