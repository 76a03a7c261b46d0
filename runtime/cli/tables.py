"""rich's console for tables and progress bars, with texts that can't control the terminal.

Import this only where something is printed: loading rich takes longer than printing the help.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tritgguf.runtime.cli.terminal import printable, unprotected


class TableConsole(Console):
    """On a terminal as wide as that, elsewhere `width` characters wide."""

    def __init__(self, *, width: int | None = None, stderr: bool = False, highlight: bool = True) -> None:
        stream = unprotected(sys.stderr if stderr else sys.stdout)
        super().__init__(width=None if stream.isatty() else width, file=stream, stderr=stderr, highlight=highlight)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with `printable` texts where that goes to a terminal."""
        for segment in super().render(renderable, options):
            shown = self.is_terminal and not segment.control
            yield Segment(printable(segment.text), segment.style) if shown else segment
