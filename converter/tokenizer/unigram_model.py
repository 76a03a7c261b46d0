"""Unigram in a tokenizer.model of SentencePiece: llama.cpp's tokenizer model "t5", with the same pieces and scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gguf import TokenType
from tokenizers import models

from tritgguf.converter.tokenizer.files import SENTENCEPIECE_MODEL, SideFiles
from tritgguf.converter.tokenizer.sentencepiece_model import (
    ModelFile,
    cutter,
    model_file_tokenizer,
    processor_of,
    refuse,
)
from tritgguf.converter.tokenizer.sentencepiece_proto import SentencePieceProto
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.unigram import FIRST_KEYS, NO_BYTES, space_and_charsmap_keys
from tritgguf.converter.tokenizer.unigram_texts import check_charsmap

ROUNDS = (
    "SentencePiece adds scores in 32 bits, llama.cpp and the tokenizers library in 64: where two ways to split a text "
    "are equally good, as in long repetitions, they may choose different ones"
)


def unigram_model_tokenizer(model: ModelFile, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a SentencePiece Unigram model; raise TokenizerError if llama.cpp would tokenize differently."""
    proto = model.proto
    refuse(_problems(proto))
    check_charsmap(proto.charsmap, SENTENCEPIECE_MODEL)
    keys = FIRST_KEYS | space_and_charsmap_keys(proto.charsmap, merges=proto.removes_extra_whitespaces)
    tokenizer = model_file_tokenizer("unigram", model, files, n_vocab, keys)
    return replace(tokenizer, notes=(*tokenizer.notes, ROUNDS), comparable=_comparable(model, tokenizer.special_tokens))


def _problems(proto: SentencePieceProto) -> dict[str, bool]:
    merges, prefix = proto.removes_extra_whitespaces, proto.adds_dummy_prefix
    unused = any(piece.kind == TokenType.UNUSED for piece in proto.pieces)
    return {
        f"a unigram model whose {NO_BYTES}": proto.byte_fallback,
        "a unigram model that removes extra spaces and puts none before a text, as llama.cpp does": merges
        and not prefix,
        "a unigram model that keeps all spaces and puts one before a text; llama.cpp puts none before spaces": (
            prefix and not merges
        ),
        "a unigram model with pieces marked unused, which llama.cpp would use": unused,
        "a model that leaves spaces unescaped, which llama.cpp escapes": not proto.escapes_whitespaces,
        "a model that puts spaces behind words, which llama.cpp puts before": proto.whitespace_is_suffix,
    }


def _comparable(model: ModelFile, special_texts: tuple[str, ...]) -> Callable[[str], bool]:
    """Return for which texts the rounding of sums doesn't matter: those that are split the same in 64 bits."""
    processor = processor_of(model.data, SENTENCEPIECE_MODEL)
    # The library also finds control tokens in texts; under names that no text has, it doesn't.
    pieces = [
        (piece.text if piece.kind == TokenType.NORMAL else f"\ufdd0{token_id}", piece.score)
        for token_id, piece in enumerate(model.proto.pieces)
    ]
    in_64_bits = models.Unigram(pieces, processor.unk_id())
    cut = cutter(special_texts)

    def comparable(text: str) -> bool:
        return all(
            [token.id for token in in_64_bits.tokenize(processor.normalize(part))] == processor.encode(part)
            for part in cut(text)[::2]
        )

    return comparable
