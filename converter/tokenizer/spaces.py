"""How a tokenizer.json treats spaces in the manner of SentencePiece: written as ▁, with one added before a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON

SPACE = "▁"
_ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# Gemma's pre-tokenizer splits at spaces, which its normalizer has replaced: it never finds one.
_IDLE_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_PREPEND = {"type": "Prepend", "prepend": SPACE}

NO_SECOND_SPACE = "the tokenizer puts no space before text that has one already, llama.cpp puts another"


@dataclass(frozen=True)
class Spaces:
    """How spaces are treated: before which texts one is added, and whether a piece ends before each space."""

    prefix: Literal["always", "first", "never"]
    split: bool = False
    difference: str = ""


def spaces_of(normalizer: object, pre_tokenizer: object) -> Spaces:
    """Read how spaces are treated from the normalizer and pre-tokenizer; raise TokenizerError for an unknown pair."""
    steps = normalizer_steps(normalizer)
    if pre_tokenizer is None and steps == [_PREPEND, _ESCAPE]:
        return Spaces("always")
    if pre_tokenizer in (None, _IDLE_SPLIT) and steps == [_ESCAPE]:
        return Spaces("never")
    metaspace = pre_tokenizer if isinstance(pre_tokenizer, Mapping) and not steps else {}
    if metaspace.get("type") == "Metaspace" and metaspace.get("replacement") == SPACE:
        return _metaspace(metaspace)
    raise TokenizerError(
        f"{TOKENIZER_JSON}: normalizer {name_of(normalizer)} with pre-tokenizer {name_of(pre_tokenizer)} isn't how "
        "SentencePiece treats spaces; expected Prepend and Replace, or Metaspace"
    )


def normalizer_steps(normalizer: object) -> list[Any]:
    """Return the parts of a Sequence of normalizers, or the one normalizer; none for null."""
    if isinstance(normalizer, Mapping) and isinstance(normalizer.get("normalizers"), list):
        return [step for part in normalizer["normalizers"] for step in normalizer_steps(part)]
    return [] if normalizer is None else [normalizer]


def _metaspace(pre_tokenizer: Mapping[str, Any]) -> Spaces:
    scheme = pre_tokenizer.get("prepend_scheme", "always" if pre_tokenizer.get("add_prefix_space", True) else "never")
    split = bool(pre_tokenizer.get("split", True))
    if scheme == "first":
        return Spaces("first", split)
    return Spaces("always", split, NO_SECOND_SPACE) if scheme == "always" else Spaces("never", split)


def name_of(part: object) -> str:
    """Return the type of a tokenizer.json's normalizer or pre-tokenizer, for a message."""
    return str(part.get("type")) if isinstance(part, Mapping) else "none"
