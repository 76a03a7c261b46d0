"""WordPiece in a tokenizer.json (BERT and kin): llama.cpp's tokenizer model "bert".

The vocabulary is stored as llama.cpp looks it up: a piece that begins a word has ▁ before it, one that continues a word
has lost its ##. Words and pieces are found as BERT's tokenizer does (llm_tokenizer_wpm in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gguf import Keys, TokenType

from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, string, uint32
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON, SideFiles
from tritgguf.converter.tokenizer.post_processor import Around, around_text, overruled
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.spaces import SPACE, name_of
from tritgguf.converter.tokenizer.special_ids import SpecialIds, special_metadata
from tritgguf.converter.tokenizer.tokenizer_json import TokenizerJson
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

# llama.cpp's names, which the gguf package lacks (llama-arch.cpp)
LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
CONTINUES = "##"

# Spaces by Unicode's White_Space, control characters by its general category
CONTROL_SPACES = frozenset(map(chr, [0x0B, 0x0C, *range(0x1C, 0x20), 0x85]))


class Difference(NamedTuple):
    """A class of texts that get other ids in llama.cpp."""

    note: str
    shows: Callable[[str], bool]


class Words(NamedTuple):
    """How words are found: whether letters become small ones, and whether accents are taken off."""

    lowercase: bool
    strip_accents: bool


def wordpiece_tokenizer(source: TokenizerJson, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a WordPiece tokenizer; raise TokenizerError if llama.cpp would tokenize differently."""
    words = _words(source.structure)
    longest = _longest_word(source.model)
    vocabulary, unknown = _vocabulary(source, n_vocab)
    around = around_text(source.structure.get("post_processor"))
    _check_around(around)
    metadata: Metadata = {
        Keys.Tokenizer.MODEL: string("bert"),
        Keys.Tokenizer.PRE: string("default"),
        **vocabulary.metadata(with_scores=False),
        LOWERCASE: boolean(words.lowercase),
        STRIP_ACCENTS: boolean(words.strip_accents),
        **special_metadata(SpecialIds(files, vocabulary, {"unk": unknown}, around)),
        Keys.Tokenizer.BOS_ID: uint32(around.before[0]),
        Keys.Tokenizer.SEP_ID: uint32(around.after[0]),
        Keys.Tokenizer.ADD_BOS: boolean(True),
        Keys.Tokenizer.ADD_SEP: boolean(True),
    }
    differences = _differences(words, longest)
    return SourceTokenizer(
        kind="wordpiece",
        metadata=metadata,
        special_tokens=vocabulary.special_texts(),
        encode_with_source=source.reference,
        notes=(*overruled(around, files.tokenizer_config), *(difference.note for difference in differences)),
        hint="; ".join(source.differences()),
        comparable=lambda text: not any(difference.shows(text) for difference in differences),
    )


def _differences(words: Words, longest: int) -> list[Difference]:
    """Return the classes of texts that no file can give the same ids for."""
    found = [
        Difference(
            f"the tokenizer takes words of more than {longest} letters as unknown, llama.cpp splits them: texts with "
            "such words get other ids",
            lambda text: _longest_run(text) > longest,
        ),
        Difference(
            "the tokenizer drops the control characters U+000B, U+000C, U+001C to U+001F and U+0085, llama.cpp takes "
            "them for spaces: texts with those get other ids",
            lambda text: not CONTROL_SPACES.isdisjoint(text),
        ),
        Difference(
            f"llama.cpp takes {SPACE} for a word's beginning: texts with it may get other ids",
            lambda text: SPACE in text,
        ),
    ]
    if words.strip_accents:
        what = (
            "to strip accents llama.cpp takes every combining mark, also the vowel signs of Indic scripts, and all but "
            "the first letter of a Hangul syllable: texts in those scripts may get other ids"
        )
        found.append(Difference(what, _loses_more_than_accents))
    elif words.lowercase:
        what = "llama.cpp makes one small letter of İ, the tokenizer two: texts with it may get other ids"
        found.append(Difference(what, lambda text: "İ" in text))
    return found


def _loses_more_than_accents(text: str) -> bool:
    """Whether a letter is written with more than one letter and marks that take no place of their own (Mn)."""
    for letter in text:
        kinds = list(map(unicodedata.category, unicodedata.normalize("NFD", letter)))
        if "Mc" in kinds or "Me" in kinds or sum(kind != "Mn" for kind in kinds) > 1:
            return True
    return False


def _longest_run(text: str) -> int:
    """Return the most letters between two spaces: no word is longer, however it is normalized."""
    return max(map(len, unicodedata.normalize("NFD", text).split()), default=0)


def _longest_word(model: Mapping[str, Any]) -> int:
    longest = model.get("max_input_chars_per_word", 100)
    if type(longest) is not int or longest < 1:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: max_input_chars_per_word is {shown(longest)}; expected a number of letters"
        )
    return longest


def _vocabulary(source: TokenizerJson, n_vocab: int) -> tuple[Vocabulary, int]:
    """Return the pieces as llama.cpp looks them up, and the id of the unknown one."""
    model, added = source.model, {token.text for token in source.added_tokens}
    pieces, unknown = model.get("vocab"), model.get("unk_token")
    prefix = model.get("continuing_subword_prefix", CONTINUES)
    if prefix != CONTINUES:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: continuing_subword_prefix is {shown(prefix)}; only {CONTINUES} can be converted"
        )
    if not isinstance(pieces, Mapping) or not isinstance(unknown, str) or unknown not in pieces:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the WordPiece model's unk_token is {shown(unknown)}; expected a text in vocab"
        )
    vocabulary = Vocabulary(n_vocab, TOKENIZER_JSON)
    for text, token_id in pieces.items():
        if text not in added and text != unknown:
            vocabulary.put(token_id, _looked_up(text), TokenType.NORMAL)
    vocabulary.put_added(source.added_tokens)
    vocabulary.put(pieces[unknown], unknown, TokenType.UNKNOWN)
    vocabulary.check()
    return vocabulary, pieces[unknown]


def _looked_up(text: str) -> str:
    if not text.startswith(CONTINUES) or text == CONTINUES:
        return SPACE + text
    continued = text.removeprefix(CONTINUES)
    if continued.startswith(SPACE):
        raise TokenizerError(
            f"{TOKENIZER_JSON}: piece {text!r} continues a word with {SPACE}, which begins words in llama.cpp"
        )
    return continued


def _words(structure: Mapping[str, Any]) -> Words:
    """Read the normalizer and pre-tokenizer; raise TokenizerError for others than BERT's."""
    normalizer, pre_tokenizer = structure.get("normalizer"), structure.get("pre_tokenizer")
    if not _is_of_type("BertNormalizer", normalizer) or not _is_of_type("BertPreTokenizer", pre_tokenizer):
        raise TokenizerError(
            f"{TOKENIZER_JSON}: normalizer {name_of(normalizer)} with pre-tokenizer {name_of(pre_tokenizer)}; "
            "llama.cpp's WordPiece does as BertNormalizer and BertPreTokenizer do, nothing else"
        )
    options: Mapping[str, Any] = structure["normalizer"]
    for option in ("clean_text", "handle_chinese_chars"):
        if options.get(option, True) is not True:
            raise TokenizerError(
                f"{TOKENIZER_JSON}: BertNormalizer sets {option} to {shown(options[option])}; llama.cpp always "
                "does what it turns off"
            )
    lowercase = options.get("lowercase", True) is True
    strips = options.get("strip_accents")
    return Words(lowercase, lowercase if strips is None else strips is True)


def _check_around(around: Around) -> None:
    if not len(around.before) == len(around.after) == 1:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the post-processor puts ids {list(around.before)} before a text and "
            f"{list(around.after)} after it; llama.cpp's WordPiece always puts one before, such as [CLS], and one "
            "after, such as [SEP]"
        )


def _is_of_type(name: str, part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == name
