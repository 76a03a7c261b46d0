"""What a Unigram tokenizer.json does to a text before it is split into pieces, and where llama.cpp does otherwise."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import normalizers

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON
from tritgguf.converter.tokenizer.reference import refusals
from tritgguf.converter.tokenizer.sentencepiece_model import cutter, processor_of
from tritgguf.converter.tokenizer.sentencepiece_proto import model_with_charsmap
from tritgguf.converter.tokenizer.spaces import SPACE, Spaces, normalizer_steps, spaces_of

WRITTEN_SPACES = (
    f"the tokenizer takes {SPACE} in a text for a space, so it puts none before one that begins with it; llama.cpp "
    f"does: texts with {SPACE} may get other ids"
)
REWRITES = (
    "the tokenizers library rewrites some letters with several marks, such as decomposed Vietnamese ones, and CR LF "
    "otherwise than SentencePiece and llama.cpp do by the same precompiled charsmap: texts with those may get other ids"
)
WIDE_SPECIALS = (
    "the tokenizers library finds special tokens also in letters of which the precompiled charsmap makes their text, "
    "such as ＜s＞; llama.cpp doesn't: texts with those get other ids"
)
OTHER_SPACES = (
    "the tokenizer splits at or strips every kind of space, llama.cpp those alone that the precompiled charsmap makes "
    "plain spaces: texts with others, such as U+0085, may get other ids"
)
LAST_SPACE = "the tokenizer keeps a space that ends a text, llama.cpp removes it"

_EXTRA_SPACES = {"Regex": " {2,}"}


@dataclass(frozen=True)
class TextRules:
    """What is done to a text first.

    `charsmap` is SentencePiece's, empty for none. `merges` is whether runs of spaces become one; `keeps_last` whether
    that one stays at a text's end. `strips` and `splits_at_any` are whether every kind of space is stripped at the end,
    or splits words.
    """

    charsmap: bytes
    merges: bool
    keeps_last: bool
    strips: bool
    splits_at_any: bool
    spaces: Spaces

    def notes(self) -> list[str]:
        """Return which texts may get other ids in llama.cpp; `comparable` is false for those."""
        found = {
            REWRITES: bool(self.charsmap),
            WIDE_SPECIALS: bool(self.charsmap),
            WRITTEN_SPACES: self.merges,
            OTHER_SPACES: self.strips or self.splits_at_any,
        }
        return [note for note, present in found.items() if present]


def text_rules(structure: Mapping[str, Any]) -> TextRules:
    """Read the normalizer and pre-tokenizer; raise TokenizerError for what llama.cpp can't do."""
    steps, pre_tokenizer = normalizer_steps(structure.get("normalizer")), structure.get("pre_tokenizer")
    charsmap = _charsmap(steps)
    strips, merges = _extra_spaces(steps)
    splits_at_any = False
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}:
            pre_tokenizer, splits_at_any = metaspace, True
    spaces = spaces_of({"type": "Sequence", "normalizers": steps}, pre_tokenizer)
    merges = merges or splits_at_any
    if spaces.prefix == ("never" if merges else "always"):
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the tokenizer {'removes extra' if merges else 'keeps all'} spaces and puts "
            f"{'none' if merges else 'one'} before a text; llama.cpp's Unigram puts one before each text if it removes "
            "extra spaces, and otherwise only before the first letter"
        )
    keeps_last = merges and not (strips or splits_at_any)
    return TextRules(charsmap, merges, keeps_last, strips, splits_at_any, spaces)


def _charsmap(steps: list[Any]) -> bytes:
    """Take a Precompiled from the front of the steps; return its charsmap."""
    match steps[:1]:
        case [{"type": "Precompiled", "precompiled_charsmap": str(encoded)}]:
            steps.pop(0)
            try:
                charsmap = base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise TokenizerError(f"{TOKENIZER_JSON}: precompiled_charsmap isn't base64 ({error})") from error
            check_charsmap(charsmap, TOKENIZER_JSON)
            return charsmap
        case [{"type": "Precompiled", "precompiled_charsmap": None}]:
            steps.pop(0)
    return b""


def check_charsmap(charsmap: bytes, origin: str) -> None:
    """Raise TokenizerError where the charsmap's two parts don't fit into it; llama.cpp refuses those."""
    size = struct.unpack_from("<I", charsmap)[0] if len(charsmap) >= 4 else 0
    if charsmap and (not size or size % 4 or size + 4 >= len(charsmap)):
        raise TokenizerError(
            f"{origin}: precompiled_charsmap has {len(charsmap)} bytes and says {size} of its first part: damaged"
        )


def _extra_spaces(steps: list[Any]) -> tuple[bool, bool]:
    """Take what merges spaces from the front of the steps; return whether it strips the end, and if it was there."""
    match steps:
        case [{"type": "Strip", "strip_right": True}, {"type": "Replace", "pattern": pattern, "content": content}, *_]:
            strips, taken = True, 2
        case [{"type": "Replace", "pattern": pattern, "content": content}, *_]:
            strips, taken = False, 1
        case _:
            return False, False
    if pattern != _EXTRA_SPACES or content not in (" ", SPACE):
        return False, False
    del steps[:taken]
    return strips, True


def comparable(rules: TextRules, special_texts: tuple[str, ...]) -> Callable[[str], bool]:
    """Return which texts are the same for llama.cpp and the source when they are split into pieces."""
    cut = cutter(special_texts)
    rewrite = _agreed_rewriting(rules)

    def agrees(part: str) -> bool:
        rewritten = rewrite(part)
        if rewritten is None or (rules.merges and SPACE in part) or any(map(rewritten.__contains__, special_texts)):
            return False
        if rules.spaces.prefix == "first" and rewritten.startswith(" "):  # before which the source puts no space
            return False
        looked_at = rewritten.strip() if rules.splits_at_any else ""
        if rules.strips or rules.splits_at_any:
            return rewritten.strip() == rewritten.strip(" ") and not any(map(_is_other_space, looked_at))
        return True

    return lambda text: all(agrees(part) for part in cut(text)[::2])


def _is_other_space(letter: str) -> bool:
    return letter != " " and letter.isspace()


def _agreed_rewriting(rules: TextRules) -> Callable[[str], str | None]:
    """Return a function that rewrites a text by the charsmap; None where the two libraries differ."""
    if not rules.charsmap:
        return lambda text: text
    with refusals():
        library = normalizers.Precompiled(rules.charsmap)
    processor = processor_of(model_with_charsmap(rules.charsmap), TOKENIZER_JSON)

    def rewrite(text: str) -> str | None:
        in_library, as_meant = library.normalize_str(text), processor.normalize(text)
        if rules.merges:
            in_library, as_meant = (re.sub(" +", " ", rewritten) for rewritten in (in_library, as_meant))
        return in_library if in_library == as_meant else None

    return rewrite
