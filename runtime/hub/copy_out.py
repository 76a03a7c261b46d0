"""Copy a model out of the cache: whole, and compared with its digest on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.whole_files import require_writable, whole_files, write_at
from tritgguf.runtime.hub.cache import Entry, damaged
from tritgguf.runtime.hub.record import StoredFile

_PIECE_BYTES = 1 << 22


class _Copy(NamedTuple):
    """A file that is to have a size; it is filled piece by piece."""

    file_bytes: int
    header: bytes = b""


def copy_out(entry: Entry, out: Path, *, force: bool = False, progress: Progress | None = None) -> list[Path]:
    """Copy a model's file to `out`, or its parts beside it under its name; return their paths.

    Raises OutputError if they can't be written, CacheError if the cache's are damaged; then there is no file.
    """
    from tritgguf.converter.gguf_io.parts import part_paths  # not at the top, with gguf: the help needn't wait for it

    files = entry.record.files
    targets = part_paths(out, len(files))
    require_writable(out, targets, force)
    report = counted(progress, "copying", entry.record.n_bytes)
    with whole_files(targets, [_Copy(file.n_bytes) for file in files], force=force) as opened:
        for file, path, new in zip(files, entry.paths, opened, strict=True):
            found, position = hashlib.sha256(), 0
            for piece in _pieces(path, entry):
                write_at(new.file, piece, position)
                found.update(piece)
                position += len(piece)
                report(len(piece))
            _require_same(entry, file, position, found.hexdigest())
    return targets


def _pieces(path: Path, entry: Entry) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while n_bytes := file.readinto(buffer):
                yield buffer[:n_bytes]
    except OSError as error:
        raise damaged(entry, f"{path} can't be read: {error.strerror}") from error


def _require_same(entry: Entry, file: StoredFile, n_bytes: int, sha256: str) -> None:
    if n_bytes != file.n_bytes:
        raise damaged(entry, f"{file.path} has {n_bytes:,} bytes, expected {file.n_bytes:,}")
    if file.sha256 not in (None, sha256):
        raise damaged(entry, f"the SHA-256 of {file.path} is {sha256}, expected {file.sha256}")
