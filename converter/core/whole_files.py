"""Files that appear whole or not at all: each gets its name when all are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from tritgguf.converter.core.new_file import NewFile, remove_leftovers
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
    """A file that is being written, and where it can be opened until it has its name."""

    path: Path
    file: BinaryIO


class Content(Protocol):
    """A file's first bytes, and its final size."""

    @property
    def header(self) -> bytes: ...

    @property
    def file_bytes(self) -> int: ...


@contextlib.contextmanager
def whole_files(paths: Sequence[Path], contents: Sequence[Content], *, force: bool = False) -> Iterator[list[OpenPart]]:
    """Open new files of the final sizes, with their headers; name all after the block, or remove all on errors.

    Removes what killed processes left of the same files. Raises OutputError if the disk has too little space, a file
    can't be written, or, unless `force`, one exists by then.
    """
    named: list[Path] = []
    try:
        for path in paths:
            remove_leftovers(path)
        _require_space(paths, contents)
        with contextlib.ExitStack() as stack:
            files = [NewFile(path) for path in paths]
            for new, content in zip(files, contents, strict=True):
                stack.callback(new.close)
                new.open()
                reserve(new.file, content.file_bytes)
                write_at(new.file, memoryview(content.header), 0)
            yield [OpenPart(new.path, new.file) for new in files]
            for new in files:
                os.fsync(new.file.fileno())
            # Remove the old first part before naming others, and name the new one last: a program that finds a first
            # part then finds all parts of the same conversion.
            if force and len(paths) > 1:
                paths[0].unlink(missing_ok=True)
            for new in reversed(files):
                new.publish(replace=force)
                named.append(new.target)
    except BaseException as error:
        if len(named) < len(paths):
            for path in named:
                path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise OutputError(f"another program wrote {paths[0]} meanwhile; add --force to replace it") from error
        if isinstance(error, OSError):
            raise OutputError(f"{paths[0]} can't be written: {error.strerror or error}") from error
        raise


def _require_space(paths: Sequence[Path], contents: Sequence[Content]) -> None:
    folder = paths[0].parent
    free, needed = shutil.disk_usage(folder).free, sum(content.file_bytes for content in contents)
    if free < needed:
        raise OutputError(f"{folder} has {format_size(free)} free, but {paths[0].name} needs {format_size(needed)}")


class _Text(NamedTuple):
    header: bytes

    @property
    def file_bytes(self) -> int:
        return len(self.header)


def write_whole(path: Path, text: bytes, *, force: bool = False) -> None:
    """Write a small file, whole or not at all; raise OutputError if it can't be, or, unless `force`, exists."""
    with whole_files([path], [_Text(text)], force=force):
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
