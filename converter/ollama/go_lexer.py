"""The pieces of a Go template: text, and actions cut into tokens; as text/template's documentation describes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tritgguf.converter.errors import UnsupportedError

SPACE = " \t\r\n"
_COMMENT = re.compile(r"\{\{(?:-[ \t\r\n])?/\*.*?\*/(?P<right>[ \t\r\n]-)?\}\}", re.S)
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<number>[+-]?\d+)
    |(?P<variable>\$\w*)
    |(?P<field>\.[^\W\d]\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>:=|[.=|(),])""",
    re.X,
)


class GoTemplateError(UnsupportedError):
    """A template that text/template refuses too, or that uses what isn't known here."""


@dataclass(frozen=True)
class Text:
    """What stands between actions, spaces trimmed as their marks ask."""

    text: str


@dataclass(frozen=True)
class Token:
    """One token of an action; `spaced` says that space came before it."""

    kind: str
    text: str
    spaced: bool


Action = list[Token]


def pieces(source: str) -> Iterator[Text | Action]:
    """Yield the template's texts and actions in order; comments vanish, with the spaces that they trim."""
    position, trim_next = 0, False
    while position < len(source):
        start = source.find("{{", position)
        text = source[position : start if start >= 0 else len(source)]
        if trim_next:
            text = text.lstrip(SPACE)
        if start < 0:
            yield from [Text(text)] if text else []
            return
        comment = _COMMENT.match(source, start)
        trims_left = source[start + 2 : start + 3] == "-" and source[start + 3 : start + 4] in tuple(SPACE)
        if trims_left:
            text = text.rstrip(SPACE)
        if text:
            yield Text(text)
        if comment:
            position, trim_next = comment.end(), bool(comment["right"])
            continue
        tokens, position, trim_next = _action(source, start + (4 if trims_left else 2))
        yield tokens


def _action(source: str, position: int) -> tuple[Action, int, bool]:
    """Return the tokens up to the closing braces, where the text goes on, and whether its spaces are trimmed."""
    tokens: Action = []
    spaced = False
    while True:
        if source.startswith("}}", position):
            return tokens, position + 2, False
        if spaced and source.startswith("-}}", position):
            return tokens, position + 3, True
        match = _TOKEN.match(source, position)
        if match is None:
            found = source[position : position + 12] or "the template's end"
            raise GoTemplateError(f"the Go template has {found!r} in an action, which isn't known here")
        position = match.end()
        if match.lastgroup == "space":
            spaced = True
        else:
            tokens.append(Token(str(match.lastgroup), match.group(), spaced))
            spaced = False
