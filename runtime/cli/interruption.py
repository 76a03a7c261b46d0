"""What a command that writes a file says when Ctrl-C stops it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def reports_interruption(out: Path, kept: str = "") -> Iterator[None]:
    """Tell after Ctrl-C whether the block has written `out`; `kept` tells what stays if it hasn't."""
    before = _identity(out)
    try:
        yield
    except KeyboardInterrupt:
        state = f"was not written{kept}" if _identity(out) == before else "was complete already"
        print(f"error: interrupted; {out} {state}", file=sys.stderr)
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what differs between a file and the one that replaces it; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
