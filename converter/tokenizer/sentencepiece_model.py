"""A tokenizer.model of SentencePiece without a tokenizer.json: llama.cpp's tokenizer model "llama", same scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import sentencepiece
from gguf import Keys, TokenType

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, string
from tritgguf.converter.tokenizer.files import SENTENCEPIECE_MODEL, TOKENIZER_JSON, AddedToken, SideFiles, read_bytes
from tritgguf.converter.tokenizer.first_space import first_space
from tritgguf.converter.tokenizer.merge_scores import BYTE_PIECES
from tritgguf.converter.tokenizer.post_processor import around_in_llama_cpp
from tritgguf.converter.tokenizer.sentencepiece_proto import (
    WITHOUT_DUMMY_PREFIX,
    SentencePieceProto,
    parse_model,
)
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.special_ids import SpecialIds, special_metadata
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

TYPES = {int(kind): kind for kind in TokenType}  # TokenType(kind) takes longer than the rest of a piece's work

BOS_BY_CLASS = (
    "tokenizer_config.json doesn't set add_bos_token, so the file adds bos, as llama.cpp and transformers 4 do "
    "with such a tokenizer; transformers 5 adds none"
)


class ModelFile(NamedTuple):
    """A tokenizer.model: its bytes and what is in them."""

    data: bytes
    proto: SentencePieceProto


def read_model_file(files: SideFiles) -> ModelFile:
    """Read tokenizer.model; raise TokenizerError if it isn't a SentencePiece model."""
    data = read_bytes(files.folder / SENTENCEPIECE_MODEL)
    return ModelFile(data, _parse(data))


def merging_tokenizer(model: ModelFile, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a SentencePiece BPE model; raise TokenizerError if llama.cpp would tokenize differently."""
    refuse(_problems(model.proto))
    keys = {Keys.Tokenizer.MODEL: string("llama"), Keys.Tokenizer.PRE: string("default")}
    return model_file_tokenizer("sentencepiece", model, files, n_vocab, keys)


def model_file_tokenizer(
    kind: Literal["sentencepiece", "unigram"],
    model: ModelFile,
    files: SideFiles,
    n_vocab: int,
    keys: Metadata,
) -> SourceTokenizer:
    """Convert a model with its own pieces, scores and types; `keys` come before those."""
    data, proto = model
    vocabulary = Vocabulary(n_vocab, SENTENCEPIECE_MODEL)
    for token_id, piece in enumerate(proto.pieces):
        vocabulary.put(token_id, piece.text, TYPES[piece.kind], piece.score)
    vocabulary.put_added(token for token in files.added_tokens if not _is_own(token, proto))
    vocabulary.check()
    # transformers adds a space before each text between special tokens, or with "legacy": false before the first only.
    first_only = proto.adds_dummy_prefix and files.tokenizer_config.get("legacy") is False
    processor = processor_of(data, SENTENCEPIECE_MODEL)
    later = processor_of(data + WITHOUT_DUMMY_PREFIX, SENTENCEPIECE_MODEL) if first_only else processor
    own = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unk": processor.unk_id(), "pad": processor.pad_id()}
    defaults = {name: token_id for name, token_id in own.items() if token_id >= 0}
    metadata: Metadata = {
        **keys,
        **vocabulary.metadata(with_scores=True),
        Keys.Tokenizer.ADD_PREFIX: boolean(proto.adds_dummy_prefix),
        **special_metadata(SpecialIds(files, vocabulary, defaults, None)),
    }
    first = first_space(metadata, vocabulary) if first_only else None
    if first is not None:
        metadata[Keys.Tokenizer.ADD_PREFIX] = boolean(first.adds)
    special_texts = vocabulary.special_texts()
    encode = _encoder(processor, later, special_texts, vocabulary.ids)
    # The model's file doesn't tell what is added, so the configs' answer is compared with what llama.cpp makes of it.
    before, after = around_in_llama_cpp(metadata)
    bos_notes = (BOS_BY_CLASS,) if before and files.tokenizer_config.get("add_bos_token") is None else ()
    return SourceTokenizer(
        kind=kind,
        metadata=metadata,
        special_tokens=special_texts,
        encode_with_source=lambda text, prompt: [*before, *encode(text), *after] if prompt else encode(text),
        notes=(*bos_notes, *((first.note,) if first else ())),
        compared=first,
    )


def _parse(data: bytes) -> SentencePieceProto:
    try:
        return parse_model(data)
    except ValueError as error:
        raise TokenizerError(
            f"{SENTENCEPIECE_MODEL} isn't a SentencePiece model ({error}) and there is no {TOKENIZER_JSON} beside it; "
            f"add the {TOKENIZER_JSON} of the same model"
        ) from error


def processor_of(data: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    """Have SentencePiece load a model that is in the file `origin`; raise TokenizerError where it refuses it."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise TokenizerError(f"{origin} is refused by SentencePiece: {error!s:.200}") from error


def refuse(problems: Mapping[str, bool]) -> None:
    """Raise TokenizerError for the first problem that is there."""
    for problem, present in problems.items():
        if present:
            raise TokenizerError(f"{SENTENCEPIECE_MODEL} is {problem}")


def _problems(proto: SentencePieceProto) -> dict[str, bool]:
    has_bytes = proto.byte_fallback and {piece.text for piece in proto.pieces} >= BYTE_PIECES
    rewrites = len(proto.charsmap) > 0
    return {
        "a model without byte_fallback, which llama.cpp needs for characters beyond the vocabulary": not has_bytes,
        "a model that rewrites characters first (precompiled_charsmap), which llama.cpp doesn't": rewrites,
        "a model that removes extra spaces, which llama.cpp keeps": proto.removes_extra_whitespaces,
        "a model that leaves spaces unescaped, which llama.cpp escapes": not proto.escapes_whitespaces,
        "a model that puts spaces behind words, which llama.cpp puts before": proto.whitespace_is_suffix,
    }


def _is_own(token: AddedToken, proto: SentencePieceProto) -> bool:
    """Return whether an added token repeats a piece of the model that is cut out of texts anyway."""
    if token.token_id >= len(proto.pieces):
        return False
    piece = proto.pieces[token.token_id]
    return piece.text == token.text and piece.kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def cutter(special_texts: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a function that cuts special tokens out of a text: every second part, from the second on, is one."""
    longest_first = sorted((text for text in special_texts if text), key=len, reverse=True)
    cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
    return lambda text: cut.split(text) if cut else [text]


def _encoder(
    first: sentencepiece.SentencePieceProcessor,
    later: sentencepiece.SentencePieceProcessor,
    special_texts: Sequence[str],
    ids_by_text: Mapping[str, int],
) -> Callable[[str], list[int]]:
    """Return an encoder like transformers': it cuts special tokens out and has the model encode the rest."""
    cut = cutter(special_texts)

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(cut(text)):
            if place % 2:
                ids.append(ids_by_text[part])
            elif part:
                ids += (later if ids else first).encode(part)
        return ids

    return encode
