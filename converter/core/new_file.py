"""A file that gets its name when it is complete, and what tells its temporary name from a file of the user.

On Linux it has no name before (O_TMPFILE): whatever ends the process, the system frees it. Where that doesn't work
(NFS, exFAT, other systems), and for the moment in which it replaces another file, it has a random temporary name. A
lock on it lasts as long as its process, so the next run can remove what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which refuses to remove an open file
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")
_MODE = 0o666  # the process's umask takes the rest away
_TRIES = 100


class NewFile:
    """A new file beside `target`, open for writing, without a name or with a temporary one, until `publish`.

    Making one creates nothing. See to it that `close` will be called, then `open` it: a signal can come at any time.
    """

    file: BinaryIO

    def __init__(self, target: Path) -> None:
        self.target = target
        self._temporary: Path | None = None

    def open(self) -> None:
        """Create it; raise OSError if that can't be."""
        descriptor = _open_unnamed(self.target)
        if descriptor is None:
            _, descriptor = create_locked(self.target, self._create)
        else:
            with contextlib.suppress(OSError):
                _lock(descriptor)  # for the moment in which `publish` gives it a temporary name
        self.file = os.fdopen(descriptor, "r+b", buffering=0)

    def _create(self, temporary: Path) -> int:
        self._temporary = temporary
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        return os.open(temporary, flags, _MODE)

    @property
    def path(self) -> Path:
        """Where this user's processes can open it before it is published."""
        return self._temporary or Path(f"/proc/{os.getpid()}/fd/{self.file.fileno()}")

    def publish(self, *, replace: bool) -> None:
        """Give it its name; raise FileExistsError, unless `replace`, if there is such a file by now."""
        if self._temporary is None:
            try:
                _link(self.file.fileno(), self.target)
                return
            except FileExistsError:
                if not replace:
                    raise
            self._temporary = temporary_name(self.target)
            _link(self.file.fileno(), self._temporary)
        elif os.name == "nt":  # where open files can't be renamed
            self.file.close()
        if replace:
            self._temporary.replace(self.target)
        else:
            _rename(self._temporary, self.target)
        self._temporary = None

    def close(self) -> None:
        """Close it, and remove it unless it is published; it may have been opened or not."""
        if self._temporary is not None and os.name != "nt":
            _unlink(self._temporary)  # before the lock goes
        if hasattr(self, "file"):
            self.file.close()
        if self._temporary is not None:
            _unlink(self._temporary)


def temporary_name(target: Path) -> Path:
    """Return a random name beside `target` that `leftovers` finds."""
    return target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")


def leftovers(target: Path) -> list[Path]:
    """Return the files and folders that have a temporary name of `target`, in use or not."""
    start = len(target.name)
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        return [
            target.with_name(entry.name)
            for entry in entries
            if entry.name.startswith(target.name) and _TEMPORARY.fullmatch(entry.name, start) and not entry.is_symlink()
        ]
    return []


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files of `target` that killed processes left."""
    for path in leftovers(target):
        with contextlib.suppress(OSError):  # in use, already gone, or on a file system without locks
            if path.is_file():
                with locked(path):
                    path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's or folder's lock; raise BlockingIOError if another process does, another OSError without locks."""
    if fcntl is None:
        if path.is_dir():
            raise OSError(errno.ENOTSUP, "folders can't be locked")
        yield  # an open file can't be removed or renamed anyway
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def create_locked(target: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create a file or folder with a temporary name, and lock it; return its path and the descriptor of `create`.

    Between both, another process may take it for a leftover: then another is created.
    """
    for _ in range(_TRIES):
        path = temporary_name(target)
        try:
            descriptor = create(path)
        except FileNotFoundError:
            if target.parent.is_dir():
                continue
            raise
        try:
            _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except OSError:
            return path, descriptor  # without locks, nobody removes leftovers
        if path.exists():
            return path, descriptor
        os.close(descriptor)
    raise OSError(errno.EEXIST, "no temporary name is free")


def _lock(descriptor: int) -> None:
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no locks")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_unnamed(target: Path) -> int | None:
    """Open a file without a name in `target`'s folder; return None where that, or naming it later, doesn't work."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None:
        return None
    try:
        probe, name = os.open(target.parent, flag | os.O_RDWR, _MODE), temporary_name(target)
        try:
            _lock(probe)
            try:
                _link(probe, name)
            finally:
                try:
                    _unlink(name)
                except BaseException:  # of a signal's handler, which may run before the first line of any function
                    _unlink(name)
                    raise
        finally:
            os.close(probe)
        return os.open(target.parent, flag | os.O_RDWR, _MODE)
    except OSError:
        return None


def _link(descriptor: int, path: Path) -> None:
    """Name an open file; raise FileExistsError if the name is taken."""
    # linkat(2) describes this way. Any `src_dir_fd` makes Python call linkat with AT_SYMLINK_FOLLOW.
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)


def _rename(path: Path, target: Path) -> None:
    """Rename a file; raise FileExistsError if the name is taken."""
    if os.name == "nt":
        path.rename(target)
        return
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links, such as on exFAT: then the check and the renaming are two steps
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        path.rename(target)
    else:
        path.unlink()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
