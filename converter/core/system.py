"""Advice to the operating system: prefetch or evict parts of mapped files, reserve disk space, start writing to disk,
exchange names, keep and trim free memory.

The system reads a mapped file in small pieces, on the first access to each page, and counts every such page as this
process's memory. `prefetch` makes it read a part in large pieces in the background. `read_now` maps a part in one call,
in a third of the time of page faults. `evict` leaves the pages in the system's cache only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from tritgguf.converter.errors import SourceError

ByteArray = npt.NDArray[np.uint8]
# MADV_WILLNEED, MADV_POPULATE_READ (before Linux 5.14 an error without effect), MADV_DONTNEED:
# https://man7.org/linux/man-pages/man2/madvise.2.html
_ADVICE = {"prefetch": 3, "read_now": 22, "evict": 4}
_SYNC_FILE_RANGE_WRITE = 2  # https://man7.org/linux/man-pages/man2/sync_file_range.2.html
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # https://man7.org/linux/man-pages/man3/mallopt.3.html
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # https://man7.org/linux/man-pages/man2/rename.2.html
# Called through ctypes, since the mmap module's madvise holds the GIL while it waits for the disk.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class MappedFile(mmap.mmap):
    """A mapped file that knows what it was when it was mapped."""

    path: Path
    before: os.stat_result


def map_file(path: Path) -> MappedFile:
    """Map a file that isn't empty, for reading; raise OSError if that fails."""
    with path.open("rb") as file:
        whole = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole.path, whole.before = path.absolute(), os.fstat(file.fileno())
        return whole


def mapped(path: Path) -> ByteArray:
    """Map a file and return its bytes, read-only uint8 (n_bytes,); raise OSError if that fails."""
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    whole = map_file(path)
    if hasattr(mmap, "MADV_SEQUENTIAL"):  # so that the system doesn't expect evicted pages to be read again
        whole.madvise(mmap.MADV_SEQUENTIAL)
    return np.frombuffer(whole, np.uint8)


def require_unchanged(part: ByteArray) -> None:
    """Raise SourceError if the mapped file that `part` belongs to was written to since; other arrays are fine.

    The system ends a process that reads where a file was cut off (SIGBUS), and passes other changes on silently.
    """
    mapping = _mapping(part)
    if not isinstance(mapping, MappedFile):
        return
    try:
        now = mapping.path.stat()
    except OSError:  # removed or renamed: what is mapped stays
        return
    before = mapping.before
    same_file = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
    if same_file and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        what = f"from {before.st_size:,} to {now.st_size:,} bytes, " if now.st_size != before.st_size else ""
        raise SourceError(
            f"{mapping.path} changed {what}while it was read; run the command again when no other program writes to it"
        )


def _mapping(part: ByteArray) -> object:
    whole = part
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return whole.base.obj if isinstance(whole.base, memoryview) else None


def advise(part: ByteArray, advice: Literal["prefetch", "read_now", "evict"]) -> None:
    """Advise the system on a contiguous part of a mapped file; no effect on other arrays, or where not on Linux."""
    if _LIBC is None or part.size == 0 or not isinstance(_mapping(part), mmap.mmap):
        return
    start = part.ctypes.data
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(page), ctypes.c_size_t(start - page + part.nbytes), _ADVICE[advice])


def reserve(file: BinaryIO, n_bytes: int) -> None:
    """Set a new file's size, and allocate its disk space where possible: writing then takes a third less time.

    Raise OSError if the disk is full, or the file may not be that large.
    """
    while _LIBC is not None:
        if _LIBC.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(n_bytes)) == 0:
            return
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))
        if number != errno.EINTR:  # a signal, whose handler runs before the next call
            break
    file.truncate(n_bytes)


def start_writeback(file: BinaryIO, offset: int, n_bytes: int) -> None:
    """Start writing part of a file to disk in the background; by default the system starts late, and writers wait."""
    if _LIBC is not None and hasattr(_LIBC, "sync_file_range"):
        start, size = ctypes.c_int64(offset), ctypes.c_int64(n_bytes)
        _LIBC.sync_file_range(file.fileno(), start, size, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step; return False where the system can't."""
    if _LIBC is None or not hasattr(_LIBC, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(_LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0)


def keep_free_memory() -> None:
    """Keep freed memory for later arrays of up to 32 MB, in the whole process; no effect but with glibc.

    By default glibc gives an array of megabytes back when it is freed, and the system clears new pages for the next
    one: with two threads that took half of the processor time of `quantize`.
    """
    if _LIBC is not None and hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def trim_memory() -> None:
    """Return freed memory to the system; by default the C library keeps it for later allocations."""
    if _LIBC is not None and hasattr(_LIBC, "malloc_trim"):  # glibc
        _LIBC.malloc_trim(ctypes.c_size_t(0))
