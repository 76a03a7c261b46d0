"""Unigram in a tokenizer.json (T5, XLM-R and kin): llama.cpp's tokenizer model "t5", with the same pieces and scores.

Both choose the pieces whose scores sum up highest, and rewrite characters by the same precompiled charsmap. llama.cpp
knows two ways with spaces: it removes extra ones and puts one before each text, or it keeps all and adds none
(llm_tokenizer_ugm in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import tokenizers
from gguf import Keys, TokenType

from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, string, uint8s
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON, SideFiles
from tritgguf.converter.tokenizer.first_space import first_space
from tritgguf.converter.tokenizer.post_processor import around_text, beyond_llama_cpp, overruled
from tritgguf.converter.tokenizer.reference import refusals
from tritgguf.converter.tokenizer.source import SourceTokenizer, always
from tritgguf.converter.tokenizer.spaces import SPACE
from tritgguf.converter.tokenizer.special_ids import SpecialIds, special_metadata
from tritgguf.converter.tokenizer.tokenizer_json import TokenizerJson
from tritgguf.converter.tokenizer.unigram_texts import LAST_SPACE, TextRules, comparable, text_rules
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

FIRST_KEYS: Metadata = {Keys.Tokenizer.MODEL: string("t5"), Keys.Tokenizer.PRE: string("default")}
NO_BYTES = "byte_fallback writes unknown characters as bytes, which llama.cpp's Unigram can't: it has one unknown token"

ROUNDED = (
    "the scores have more digits than GGUF's 32-bit floats: where two ways to split a text are equally good to some 7 "
    "digits, llama.cpp may choose the other"
)


def space_and_charsmap_keys(charsmap: bytes, *, merges: bool) -> Metadata:
    """Return the keys for what llama.cpp does to a text first; the key for the space before it isn't among them."""
    keys: Metadata = {Keys.Tokenizer.REMOVE_EXTRA_WS: boolean(merges)}
    return keys | ({Keys.Tokenizer.PRECOMPILED_CHARSMAP: uint8s(charsmap)} if charsmap else {})


def unigram_tokenizer(source: TokenizerJson, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a Unigram tokenizer; raise TokenizerError if llama.cpp would tokenize differently."""
    rules = text_rules(source.structure)
    pieces, unknown = _pieces(source.model)
    vocabulary = _vocabulary(source, pieces, unknown, rules, n_vocab)
    around = around_text(source.structure.get("post_processor"))
    metadata: Metadata = {
        **FIRST_KEYS,
        **space_and_charsmap_keys(rules.charsmap, merges=rules.merges),
        **vocabulary.metadata(with_scores=True),
        Keys.Tokenizer.ADD_PREFIX: boolean(rules.spaces.prefix != "never"),
        **special_metadata(SpecialIds(files, vocabulary, {"unk": unknown}, around)),
    }
    first = first_space(metadata, vocabulary) if rules.spaces.prefix == "first" else None
    if first is not None:
        metadata[Keys.Tokenizer.ADD_PREFIX] = boolean(first.adds)
    beyond = beyond_llama_cpp(around, metadata)
    special_texts = vocabulary.special_texts()
    rounded = [(text, _as_float32(score)) for text, score in pieces]
    same_text = comparable(rules, special_texts)
    same_pieces = _same_when_rounded(source, rounded) if rounded != pieces else always
    notes = [
        *rules.notes(),
        *([ROUNDED] if rounded != pieces else []),
        *([first.note] if first else []),
    ]
    return SourceTokenizer(
        kind="unigram",
        metadata=metadata,
        special_tokens=special_texts,
        encode_with_source=source.reference,
        notes=(*beyond, *overruled(around, files.tokenizer_config), *notes),
        hint="; ".join([*beyond, *([LAST_SPACE] if rules.keeps_last else []), *source.differences()]),
        compared=first,
        comparable=lambda text: same_text(text) and same_pieces(text),
    )


def _pieces(model: Mapping[str, Any]) -> tuple[list[tuple[str, float]], int]:
    """Return pieces with scores by id, and the id of the unknown one."""
    pieces, unknown = model.get("vocab"), model.get("unk_id")
    if model.get("byte_fallback"):
        raise TokenizerError(f"{TOKENIZER_JSON}: {NO_BYTES}")
    if not isinstance(pieces, list) or type(unknown) is not int or not 0 <= unknown < len(pieces):
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the Unigram model's unk_id is {shown(unknown)}; expected the place of a piece in vocab"
        )
    for piece in pieces:
        match piece:
            case [str(), int() | float()]:
                continue
            case _:
                raise TokenizerError(f"{TOKENIZER_JSON}: piece {shown(piece)} isn't a text and a score")
    return [(text, float(score)) for text, score in pieces], unknown


def _vocabulary(
    source: TokenizerJson, pieces: list[tuple[str, float]], unknown: int, rules: TextRules, n_vocab: int
) -> Vocabulary:
    vocabulary = Vocabulary(n_vocab, TOKENIZER_JSON)
    for token_id, (text, score) in enumerate(pieces):
        vocabulary.put(token_id, text, TokenType.NORMAL, score)
    vocabulary.put_added(source.added_tokens)
    vocabulary.put(unknown, pieces[unknown][0], TokenType.UNKNOWN)
    vocabulary.check()
    normal = [
        (text, score)
        for token_id, (text, score) in enumerate(pieces)
        if vocabulary.types[token_id] == TokenType.NORMAL.value
    ]
    # An unknown character costs 10 more than the worst piece: the worst of all for the source, of these for llama.cpp.
    if not normal or min(score for _, score in normal) > min(score for _, score in pieces):
        raise TokenizerError(
            f"{TOKENIZER_JSON}: a special token has the lowest score of all pieces; llama.cpp, which measures unknown "
            "characters by the others, would split differently"
        )
    inside = next((text for text, _ in normal if rules.spaces.split and SPACE in text[1:]), None)
    if inside is not None:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the pre-tokenizer splits at each space, but piece {inside!r} holds one inside, which "
            "llama.cpp would use"
        )
    return vocabulary


def _same_when_rounded(source: TokenizerJson, rounded: list[tuple[str, float]]) -> Callable[[str], bool]:
    """Return for which texts the rounding of scores doesn't matter: the library splits them the same with either."""

    @cache
    def with_rounded() -> tokenizers.Tokenizer:
        structure = {**source.structure, "model": {**source.model, "vocab": rounded}}
        with refusals():
            return tokenizers.Tokenizer.from_str(json.dumps({**structure, "truncation": None, "padding": None}))

    return lambda text: source.reference(text) == with_rounded().encode(text, add_special_tokens=False).ids


def _as_float32(number: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError as error:
        raise TokenizerError(f"{TOKENIZER_JSON}: score {number!r} is beyond 32-bit floats, which GGUF has") from error
    return rounded
