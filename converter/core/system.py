"""What the operating system is told: which parts of mapped files come next or are done with, how large a file becomes,
which part of it is complete, and that memory is free again.

The system reads files that are mapped in small pieces, when they are touched, and counts every page that was touched
as this process's memory. Told what comes next it reads that in large pieces meanwhile; told what is wanted now it maps
that in one go, in a third of the time that touching takes; told what is done with, it keeps the pages as its own cache
only.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]
# Linux's numbers for MADV_WILLNEED, MADV_POPULATE_READ (unknown before 5.14, and then without effect), MADV_DONTNEED.
_ADVICE = {"ahead": 3, "now": 22, "done": 4}
_BEGIN_TO_WRITE = 2  # SYNC_FILE_RANGE_WRITE
# The mmap module's own madvise holds the interpreter lock while the disk is waited for.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def mapped(path: Path) -> ByteArray:
    """Return a file's bytes, read-only, none of them read yet; raise OSError where that can't be."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_SEQUENTIAL"):  # then what is let go of isn't taken for what will be read again
            whole.madvise(mmap.MADV_SEQUENTIAL)
        return np.frombuffer(whole, np.uint8)


def advise(part: ByteArray, when: Literal["ahead", "now", "done"]) -> None:
    """Tell the system that a contiguous part of a mapped file comes next, or is done with; a hint and no more."""
    whole = part
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    mapping = whole.base.obj if isinstance(whole.base, memoryview) else None
    if _LIBC is None or not isinstance(mapping, mmap.mmap) or part.size == 0:
        return
    start = part.ctypes.data
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(page), ctypes.c_size_t(start - page + part.nbytes), _ADVICE[when])


def reserve(file: BinaryIO, n_bytes: int) -> None:
    """Give a new file its size, and its place on the disk where the system can: writing then takes a third less."""
    if _LIBC is None or _LIBC.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(n_bytes)) != 0:
        file.truncate(n_bytes)


def put_on_disk(file: BinaryIO, offset: int, n_bytes: int) -> None:
    """Have the system begin to put a part of a file on the disk; left alone it begins late, and then writers wait."""
    if _LIBC is not None and hasattr(_LIBC, "sync_file_range"):
        start, size = ctypes.c_int64(offset), ctypes.c_int64(n_bytes)
        _LIBC.sync_file_range(file.fileno(), start, size, ctypes.c_uint(_BEGIN_TO_WRITE))


def give_back_free_memory() -> None:
    """Return what was freed to the system; the C library keeps it for later otherwise."""
    if _LIBC is not None and hasattr(_LIBC, "malloc_trim"):  # glibc
        _LIBC.malloc_trim(ctypes.c_size_t(0))
