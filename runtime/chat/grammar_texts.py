"""Texts in llama.cpp's notation of grammars (GBNF): one text, or one of many."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def literal(text: str) -> str:
    """Return a text as the grammar has it."""

    def spelled(letter: str) -> str:
        if letter in '"\\':
            return "\\" + letter
        return letter if letter.isprintable() and ord(letter) < 0x10000 else f"\\U{ord(letter):08X}"

    return '"' + "".join(map(spelled, text)) + '"'


def one_of(texts: Iterable[str]) -> str:
    """Return what allows one of the texts, with their common beginnings written once.

    llama.cpp follows each alternative by itself, for each token of the vocabulary: a thousand of them take a second.
    """
    return _alternatives(sorted(set(texts)))


def _alternatives(texts: list[str]) -> str:
    """Return the alternatives for texts in order, none of which come twice."""
    found = []
    for _, group in groupby(texts, key=lambda text: text[:1]):
        same = list(group)
        pairs = zip(same[0], same[-1], strict=False)  # in order, so that what these two begin with all do
        n_common = next((at for at, (one, other) in enumerate(pairs) if one != other), len(same[0]))
        begin, rest = literal(same[0][:n_common]), [text[n_common:] for text in same]
        found.append(begin if rest == [""] else f"{begin} ({_alternatives(rest)})")
    return " | ".join(found)
