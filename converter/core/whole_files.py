"""Files that appear whole or not at all: written under a temporary name and renamed when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.core.system import reserve
from tritgguf.converter.errors import OutputError

# Bytes per write call: with fewer the page cache uses smaller pages, which take longer to allocate.
WRITE_BYTES = 1 << 20

_writing = threading.Lock()


def require_writable(out: Path, paths: Sequence[Path], force: bool) -> None:
    """Raise OutputError if the files `paths` of the target `out` can't be created; create nothing."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder; expected the name of the file to write, such as {out / 'model.gguf'}")
    for path in paths:
        if path.exists() and not force:
            raise OutputError(f"{path} exists already; add --force to replace it")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is no folder; create it, or choose another target")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out.parent} isn't writable; choose another target")


class OpenPart(NamedTuple):
    """A file that is being written, and its temporary name."""

    path: Path
    file: BinaryIO


class Content(Protocol):
    """A file's first bytes, and its final size."""

    @property
    def header(self) -> bytes: ...

    @property
    def file_bytes(self) -> int: ...


@contextlib.contextmanager
def whole_files(paths: Sequence[Path], contents: Sequence[Content]) -> Iterator[list[OpenPart]]:
    """Open temporary files of the final sizes, with their headers; rename all after the block, or remove all on errors.

    Raises OutputError if the disk has too little space or a file can't be written.
    """
    folder = paths[0].parent
    partial = [path.with_name(f"{path.name}.{os.getpid()}.part") for path in paths]
    renamed: list[Path] = []
    try:
        free, needed = shutil.disk_usage(folder).free, sum(content.file_bytes for content in contents)
        if free < needed:
            raise OutputError(f"{folder} has {format_size(free)} free, but {paths[0].name} needs {format_size(needed)}")
        with contextlib.ExitStack() as files:
            opened = [OpenPart(path, files.enter_context(path.open("xb", buffering=0))) for path in partial]
            for part, content in zip(opened, contents, strict=True):
                reserve(part.file, content.file_bytes)
                write_at(part.file, memoryview(content.header), 0)
            yield opened
            for part in opened:
                os.fsync(part.file.fileno())
        # Remove the old first part before renaming, and rename the new one last: a program that finds a first part
        # then finds all parts of the same conversion.
        if len(paths) > 1:
            paths[0].unlink(missing_ok=True)
        for path, target in reversed(list(zip(partial, paths, strict=True))):
            path.replace(target)
            renamed.append(target)
    except BaseException as error:
        for path in renamed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"{paths[0]} can't be written: {error.strerror or error}") from error
        raise
    finally:
        for path in partial:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class _Text(NamedTuple):
    header: bytes

    @property
    def file_bytes(self) -> int:
        return len(self.header)


def write_whole(path: Path, text: bytes) -> None:
    """Write a small file, whole or not at all; raise OutputError if it can't be written."""
    with whole_files([path], [_Text(text)]):
        pass


def write_at(file: BinaryIO, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; threads take turns.

    Linux lets only one thread write to a file at a time too, but the waiting threads would spin on their cores.
    """
    left = data.cast("B")
    with _writing:
        while left:
            if hasattr(os, "pwrite"):
                n_written = os.pwrite(file.fileno(), left[:WRITE_BYTES], offset)
            else:
                file.seek(offset)
                n_written = file.write(left)
            left, offset = left[n_written:], offset + n_written
