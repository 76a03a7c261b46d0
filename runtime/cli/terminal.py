"""Terminals obey control characters, and texts of models, documents and file names may hold some.

An escape sequence can hide text, write over lines that stand there already, or change what the clipboard holds. So the
one place where text goes to a terminal shows such characters instead. What goes to a file or a pipe stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from tritgguf.converter.core.control_characters import CONTROLS, shown
from tritgguf.converter.core.control_characters import printable as printable

_CONTROL = re.compile(f"\r(?=\n)|[{CONTROLS}]")
_CONTROL_BUT_STYLES = re.compile(f"\r(?=\n)|(?!\x1b\\[[0-9;]*m)[{CONTROLS}]")


class _Terminal:
    """A text stream that shows control characters; `_styles` lets those through that choose colours."""

    def __init__(self, stream: IO[str], *, styles: bool = False) -> None:
        self._stream = stream
        self._pattern = _CONTROL_BUT_STYLES if styles else _CONTROL

    def write(self, text: str) -> int:
        self._stream.write(self._pattern.sub(shown, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    @property
    def rich_proxied_file(self) -> IO[str]:
        """Where Typer's rich console writes its messages about wrong usage; rich looks for this name."""
        return cast("IO[str]", _Terminal(self._stream, styles=True))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the stream has)
        return getattr(self._stream, name)


def protect() -> None:
    """Have everything that is printed to a terminal from now on go through `printable`.

    prompt_toolkit writes to the streams' buffers, and shows control characters in what is typed by itself.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty() and not isinstance(stream, _Terminal):
            setattr(sys, name, _Terminal(stream))


def unprotected(stream: IO[str]) -> IO[str]:
    """Return the stream for a writer that calls `printable` itself and needs control characters of its own."""
    return stream._stream if isinstance(stream, _Terminal) else stream
