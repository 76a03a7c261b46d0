"""Standard output that is full, closed or not UTF-8: no traceback, and an exit code that tells."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from typing_extensions import Buffer

from tritgguf.converter.errors import OutputError


class _Output(io.FileIO):
    """Standard output whose errors can be told from those of other files; a closed pipe stays a BrokenPipeError."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output can't be written: {error.strerror or error}") from error


def prepare() -> None:
    """Replace closed streams, and have characters that standard output can't show replaced by "?"."""
    # A stream that is closed is None in Python, and the next file that is opened, such as a model, would take its
    # number: what native code prints would go there. Writing to this standard output fails, as to a closed one.
    for name, flags, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, closefd=False))
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):
        return
    output.reconfigure(errors="replace")
    with contextlib.suppress(io.UnsupportedOperation):  # a stream in memory
        if not output.isatty():  # Windows has another class for consoles
            raw = _Output(output.fileno(), "wb", closefd=False)
            sys.stdout = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=output.encoding,
                errors="replace",
                line_buffering=output.line_buffering,
                write_through=output.write_through,
            )


def flush() -> None:
    """Write what is left; exit with 1 if the reader has gone, raise OutputError if the output can't be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        sys.exit(1)
    except OutputError:
        _discard()
        raise


def _discard() -> None:
    """Let what is left go nowhere: Python would try to write it again at its end, and print an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
