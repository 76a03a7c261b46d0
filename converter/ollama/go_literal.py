"""Write any text into a Go template."""

from __future__ import annotations

import re

_PIECES = re.compile(r'\{\{|"""|.', re.DOTALL)


def go_literal(text: str) -> str:
    """Return template text that renders as `text` and that a Modelfile can hold between three double quotes.

    Two braces would begin a template action, a single one would join the braces of an action after it, three quotes
    end the Modelfile's value, and Ollama's Modelfile parser drops unprintable characters: those become Go strings.
    """
    written = ""
    for piece in reversed(_PIECES.findall(text)):
        joins_next = piece == "{" and (not written or written.startswith("{{"))
        unprintable = not piece.isprintable() and piece not in "\n\t"
        written = (_go_string(piece) if len(piece) > 1 or joins_next or unprintable else piece) + written
    return written


def _go_string(piece: str) -> str:
    escaped = piece.replace('"', '\\"') if piece.isprintable() else _code_point(ord(piece))
    return f'{{{{ "{escaped}" }}}}'


def _code_point(number: int) -> str:
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
