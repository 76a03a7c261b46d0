"""Turn a checkpoint folder's tokenizer files into GGUF `tokenizer.*` keys that give the same token ids in llama.cpp.

tokenizer.json comes first, since transformers loads it: byte-level BPE becomes llama.cpp's tokenizer model "gpt2",
SentencePiece-style BPE becomes "llama" with scores computed from the merges, Unigram becomes "t5" and WordPiece "bert".
Without it tokenizer.model is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import TokenizerError, TritggufError
from tritgguf.converter.tokenizer.battery import battery
from tritgguf.converter.tokenizer.byte_level import byte_level_tokenizer
from tritgguf.converter.tokenizer.check import check_token_ids, passthrough_tokenizer
from tritgguf.converter.tokenizer.files import SENTENCEPIECE_MODEL, TOKENIZER_JSON, SideFiles, read_side_files
from tritgguf.converter.tokenizer.merge_scores import has_byte_pieces, merge_scored_tokenizer
from tritgguf.converter.tokenizer.reference import Reference
from tritgguf.converter.tokenizer.sentencepiece_model import ModelFile, merging_tokenizer, read_model_file
from tritgguf.converter.tokenizer.sentencepiece_proto import BPE_MODEL, MODEL_TYPES, UNIGRAM_MODEL
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIdsProvider, installed_provider
from tritgguf.converter.tokenizer.tokenizer_json import TokenizerJson, as_bpe, read_tokenizer_json
from tritgguf.converter.tokenizer.unigram import unigram_tokenizer
from tritgguf.converter.tokenizer.unigram_model import unigram_model_tokenizer
from tritgguf.converter.tokenizer.wordpiece import wordpiece_tokenizer

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
        return _tokenizer_model(files, n_vocab)
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
    kind = source.model.get("type", "BPE")
    convert = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if convert is None:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the model is of type {shown(kind)}; expected {', '.join(_BY_TYPE)}, which llama.cpp has"
        )
    return convert(source, files, n_vocab)


def _bpe_tokenizer(source: TokenizerJson, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    convert = merge_scored_tokenizer if has_byte_pieces(source) else byte_level_tokenizer
    return convert(as_bpe(source), files, n_vocab)


def _tokenizer_model(files: SideFiles, n_vocab: int) -> SourceTokenizer:
    model = read_model_file(files)
    found = model.proto.model_type
    if found not in _BY_MODEL_TYPE:
        raise TokenizerError(
            f"{SENTENCEPIECE_MODEL} is a {MODEL_TYPES.get(found, str(found))} model; expected unigram or bpe, which "
            "llama.cpp has"
        )
    return _BY_MODEL_TYPE[found](model, files, n_vocab)


_BY_TYPE: Mapping[str, Callable[[TokenizerJson, SideFiles, int], SourceTokenizer]] = {
    "BPE": _bpe_tokenizer,
    "Unigram": unigram_tokenizer,
    "WordPiece": wordpiece_tokenizer,
}
_BY_MODEL_TYPE: Mapping[int, Callable[[ModelFile, SideFiles, int], SourceTokenizer]] = {
    UNIGRAM_MODEL: unigram_model_tokenizer,
    BPE_MODEL: merging_tokenizer,
}
