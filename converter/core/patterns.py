"""Regular expressions that others write: in a checkpoint's config.json, or on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tritgguf.converter.errors import SourceError

MAX_PATTERN = 200  # characters
MAX_REPETITIONS = 3
MAX_CHOICES = 4  # groups of a pattern with alternatives
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPETITION = re.compile(r"(?<!\()[*+?{]")  # the ? of (?: repeats nothing
_GROUP = re.compile(r"(?<!\\)\(")


def require_quick(key: str, patterns: Iterable[str]) -> None:
    """Raise SourceError, with what messages call the key, for patterns that can take exponential time to match."""
    for pattern in patterns:
        if may_be_slow(pattern):
            raise SourceError(
                f"{key} holds the pattern {pattern!r:.80}, which can take for ever to match; expected the name of a "
                f"module, or a pattern with at most {MAX_REPETITIONS} repetitions"
            )


def may_be_slow(pattern: str) -> bool:
    """Whether a pattern can take exponential time to match: it repeats a group, or repeats or chooses too often.

    Python's `re` can't be interrupted, and tries every way to split a text among repetitions and alternatives.
    """
    n_choices = len(_GROUP.findall(pattern)) if "|" in pattern else 0
    too_often = n_repetitions(pattern) > MAX_REPETITIONS or n_choices > MAX_CHOICES
    return len(pattern) > MAX_PATTERN or too_often or _REPEATED_GROUP.search(pattern) is not None


def n_repetitions(pattern: str) -> int:
    """Return how often a pattern repeats something; a text of n characters takes up to n ** that many steps."""
    return len(_REPETITION.findall(pattern))
