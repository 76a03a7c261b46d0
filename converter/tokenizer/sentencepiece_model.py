"""A tokenizer.model of SentencePiece without a tokenizer.json: llama.cpp's tokenizer model "llama", same scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import sentencepiece
from gguf import Keys, TokenType

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, string
from tritgguf.converter.tokenizer.files import SENTENCEPIECE_MODEL, TOKENIZER_JSON, AddedToken, SideFiles, read_bytes
from tritgguf.converter.tokenizer.first_space import first_space
from tritgguf.converter.tokenizer.merge_scores import BYTE_PIECES
from tritgguf.converter.tokenizer.post_processor import around_in_llama_cpp
from tritgguf.converter.tokenizer.sentencepiece_proto import (
    BPE_MODEL,
    MODEL_TYPES,
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


def sentencepiece_tokenizer(files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a SentencePiece BPE model; raise TokenizerError if llama.cpp would tokenize differently."""
    data = read_bytes(files.folder / SENTENCEPIECE_MODEL)
    proto = _parse(data)
    _check_supported(proto)
    vocabulary = Vocabulary(n_vocab, SENTENCEPIECE_MODEL)
    for token_id, piece in enumerate(proto.pieces):
        vocabulary.put(token_id, piece.text, TYPES[piece.kind], piece.score)
    vocabulary.put_added(token for token in files.added_tokens if not _is_own(token, proto))
    vocabulary.check()
    # transformers adds a space before each text between special tokens, or with "legacy": false before the first only.
    first_only = proto.adds_dummy_prefix and files.tokenizer_config.get("legacy") is False
    processor = sentencepiece.SentencePieceProcessor(model_proto=data + (WITHOUT_DUMMY_PREFIX if first_only else b""))
    own = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unk": processor.unk_id(), "pad": processor.pad_id()}
    defaults = {name: token_id for name, token_id in own.items() if token_id >= 0}
    metadata: Metadata = {
        Keys.Tokenizer.MODEL: string("llama"),
        Keys.Tokenizer.PRE: string("default"),
        **vocabulary.metadata(with_scores=True),
        Keys.Tokenizer.ADD_PREFIX: boolean(proto.adds_dummy_prefix),
        **special_metadata(SpecialIds(files, vocabulary, defaults, None)),
    }
    first = first_space(metadata, vocabulary) if first_only else None
    if first is not None:
        metadata[Keys.Tokenizer.ADD_PREFIX] = boolean(first.adds)
    special_texts = vocabulary.special_texts()
    encode = _encoder(processor, special_texts, vocabulary.ids, first_only)
    # The model's file doesn't tell what is added, so the configs' answer is compared with what llama.cpp makes of it.
    before, after = around_in_llama_cpp(metadata)
    bos_notes = (BOS_BY_CLASS,) if before and files.tokenizer_config.get("add_bos_token") is None else ()
    return SourceTokenizer(
        kind="sentencepiece",
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


def _check_supported(proto: SentencePieceProto) -> None:
    kind = MODEL_TYPES.get(proto.model_type, str(proto.model_type))
    has_bytes = proto.byte_fallback and {piece.text for piece in proto.pieces} >= BYTE_PIECES
    rewrites = proto.charsmap_bytes > 0
    problems = {
        f"a {kind} model; only bpe ones merge as llama.cpp does": proto.model_type != BPE_MODEL,
        "a model without byte_fallback, which llama.cpp needs for characters beyond the vocabulary": not has_bytes,
        "a model that rewrites characters first (precompiled_charsmap), which llama.cpp doesn't": rewrites,
        "a model that removes extra spaces, which llama.cpp keeps": proto.removes_extra_whitespaces,
        "a model that leaves spaces unescaped, which llama.cpp escapes": not proto.escapes_whitespaces,
        "a model that puts spaces behind words, which llama.cpp puts before": proto.whitespace_is_suffix,
    }
    for problem, present in problems.items():
        if present:
            raise TokenizerError(f"{SENTENCEPIECE_MODEL} is {problem}")


def _is_own(token: AddedToken, proto: SentencePieceProto) -> bool:
    """Return whether an added token repeats a piece of the model that is cut out of texts anyway."""
    if token.token_id >= len(proto.pieces):
        return False
    piece = proto.pieces[token.token_id]
    return piece.text == token.text and piece.kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def _encoder(
    processor: sentencepiece.SentencePieceProcessor,
    special_texts: Sequence[str],
    ids_by_text: dict[str, int],
    first_only: bool,
) -> Callable[[str], list[int]]:
    """Return an encoder like transformers': it cuts special tokens out and has the model encode the rest."""
    longest_first = sorted((text for text in special_texts if text), key=len, reverse=True)
    cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(cut.split(text) if cut else [text]):
            if place % 2:
                ids.append(ids_by_text[part])
            elif part:
                ids += processor.encode(f" {part}" if first_only and not ids else part)
        return ids

    return encode
