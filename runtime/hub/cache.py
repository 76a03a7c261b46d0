"""Models on this machine, ready to run: a folder each, with a record of what is in it.

    models/NAME-KEY/record.json         where the model came from, what was asked for, its files with sizes and digests
    models/NAME-KEY/NAME-RANDOM.gguf    the conversion; none where the record says where a file lies
    models/NAME-KEY/pending.json        what the record will say, while a conversion is written
    models/NAME-KEY/used                touched whenever the model is used
    models/locks/NAME-KEY.lock          locked by whoever changes the folder

Files get these names when they are complete, the record last, and what no record names is removed before the next
change. So what a killed process leaves does no harm, and the system frees its lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import platformdirs

from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.core.progress import Progress, Step, counted
from tritgguf.converter.errors import CacheError, TritggufError
from tritgguf.runtime.hub.record import Form, Record, StoredFile, entry_key

VARIABLE = "TRITGGUF_CACHE"
RECORD = "record.json"
USED = "used"
LOCKS = "locks"
_READ_BYTES = 1 << 22


def cache_folder() -> Path:
    """Return where the models are: `models` in TRITGGUF_CACHE, or in tritgguf in the user's folder for caches.

    Raise CacheError where there is no such folder.
    """
    chosen = os.environ.get(VARIABLE)
    try:
        folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("tritgguf", appauthor=False)
    except RuntimeError:  # no home folder
        folder = Path("~")
    if not folder.is_absolute() and not chosen:  # older versions of platformdirs then return a path that starts with ~
        raise CacheError(f"there is no home folder for a cache of models; set {VARIABLE} to a folder for it")
    return folder.absolute() / "models"


@dataclass(frozen=True)
class Entry:
    """A model in the cache."""

    folder: Path
    record: Record

    @property
    def paths(self) -> tuple[Path, ...]:
        """The model's files; the first is the one to load."""
        return tuple(self.folder / file.path for file in self.record.files)

    @property
    def used(self) -> datetime | None:
        """When the model was last used, in local time; None if it never was."""
        try:
            seconds = (self.folder / USED).stat().st_mtime
        except OSError:
            return None
        return datetime.fromtimestamp(seconds, timezone.utc).astimezone()

    def touch(self) -> None:
        """Remember that the model is used now."""
        with contextlib.suppress(OSError):  # a cache that can only be read still works
            (self.folder / USED).touch()

    def damage(self) -> str | None:
        """Return what is wrong with the files by their sizes, None if nothing is: this takes no time.

        A file that was written to since is compared by its digest, which takes about a second per gigabyte.
        """
        for file, path in zip(self.record.files, self.paths, strict=True):
            try:
                now = StoredFile.of(path, file.path)
            except OSError:
                return f"{path} is missing"
            if now.n_bytes != file.n_bytes:
                return f"{path} has {now.n_bytes:,} bytes, expected {file.n_bytes:,}"
            if now.mtime_ns != file.mtime_ns and file.sha256 is not None and digest(path) != file.sha256:
                return f"{path} was written to since it was made"
        return None


class Cache:
    """The models in a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() if folder is None else folder

    def entries(self) -> list[Entry]:
        """Return every model, ordered by name."""
        try:
            folders = [path.parent for path in self.folder.glob(f"*/{RECORD}")]
        except OSError as error:
            raise CacheError(f"{self.folder} can't be read: {error.strerror}") from error
        entries = [entry for folder in folders if (entry := self._read(folder)) is not None]
        return sorted(entries, key=lambda entry: (entry.record.name.lower(), entry.folder.name))

    def entry(self, name: str, form: Form) -> Entry | None:
        """Return a model in a form, None if it isn't here."""
        return self._read(self.folder_of(name, form))

    def folder_of(self, name: str, form: Form) -> Path:
        return self.folder / entry_key(name, form)

    def _read(self, folder: Path) -> Entry | None:
        record = self._record(folder)
        return None if record is None else Entry(folder, record)

    @staticmethod
    def _record(folder: Path) -> Record | None:
        """Return the record of a folder; None where there is none, or none that can be read."""
        try:
            return Record.from_json(read_object(folder / RECORD, CacheError))
        except (CacheError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @contextlib.contextmanager
    def locked(self, folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of an entry's folder; call `waiting` once if another process holds it, and wait."""
        from filelock import FileLock, Timeout  # not at the top: commands that only read need no locks

        try:
            (self.folder / LOCKS).mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCKS / f"{folder.name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise self._not_writable(error) from error
        try:
            yield
        finally:
            lock.release()

    def put(self, folder: Path, record: Record) -> Entry:
        """Write an entry's record, then remove what it replaces; its lock must be held."""
        from tritgguf.converter.core.whole_files import write_whole  # not at the top, with numpy: `list` needs none

        self.make_folder(folder)
        write_whole(folder / RECORD, record_bytes(record), force=True)
        self.tidy(folder, record)
        return Entry(folder, record)

    def make_folder(self, folder: Path) -> None:
        """Make an entry's folder; raise CacheError where that fails."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: Exception) -> CacheError:
        reason = error.strerror if isinstance(error, OSError) else None
        return CacheError(
            f"the cache {self.folder} can't be written ({reason or error}); set {VARIABLE} to a folder that can"
        )

    def tidy(self, folder: Path, record: Record | None, keep: tuple[str, ...] = ()) -> None:
        """Remove what is in an entry's folder but isn't of its record, or among `keep`; its lock must be held."""
        for path in self._surplus(folder, record, keep):
            with contextlib.suppress(OSError):  # Windows doesn't remove files that are in use
                path.unlink()

    @staticmethod
    def _surplus(folder: Path, record: Record | None, keep: tuple[str, ...] = ()) -> list[Path]:
        kept = {RECORD, USED, *keep, *(file.path for file in (record.files if record else ()))}
        with contextlib.suppress(OSError):
            return [path for path in folder.iterdir() if path.name not in kept]
        return []

    def remove(self, entry: Entry, waiting: Callable[[], None]) -> None:
        """Remove a model; files that lie elsewhere stay. Raise CacheError if they can't be removed."""
        with self.locked(entry.folder, waiting):
            try:
                (entry.folder / RECORD).unlink(missing_ok=True)  # first, so that no record names missing files
                shutil.rmtree(entry.folder)
            except FileNotFoundError:
                return
            except OSError as error:
                raise CacheError(f"{entry.record.name} can't be removed: {error.strerror or error}") from error

    def settled(self, entry: Entry) -> Entry:
        """Tidy up behind a process that was killed, and record the times of files that were found to be as they were.

        Otherwise such files would be read again next time. Does nothing while another process changes the model.
        """
        files = list(zip(entry.record.files, entry.paths, strict=True))
        try:
            if any(path.stat().st_mtime_ns != file.mtime_ns for file, path in files if file.sha256 is not None):
                return self._described(entry, [file.sha256 for file in entry.record.files], _not_now)
            if self._surplus(entry.folder, entry.record):
                with self.locked(entry.folder, _not_now):
                    self.tidy(entry.folder, self._record(entry.folder))
        except (TritggufError, OSError):  # a cache that can only be read, or on a full disk, still works
            pass
        return entry

    def checked(self, entry: Entry, progress: Progress | None = None) -> Entry:
        """Read an entry's files and compare their digests; record those that weren't known, and return the entry.

        Raises CacheError if a file isn't what it was.
        """
        if (damage := entry.damage()) is not None:
            raise damaged(entry, damage)
        step = counted(progress, "checking", entry.record.n_bytes)
        digests = [digest(path, step) for path in entry.paths]
        for file, path, found in zip(entry.record.files, entry.paths, digests, strict=True):
            if file.sha256 not in (None, found):
                raise damaged(entry, f"the SHA-256 of {path} is {found}, expected {file.sha256}")
        return self._described(entry, digests, lambda: None)

    def _described(self, entry: Entry, digests: Sequence[str | None], waiting: Callable[[], None]) -> Entry:
        """Record the times of an entry's files as they are now, and their digests."""
        with self.locked(entry.folder, waiting):
            if self._record(entry.folder) != entry.record:  # another process has changed it meanwhile
                return self._read(entry.folder) or entry
            described = zip(entry.record.files, entry.paths, digests, strict=True)
            files = tuple(StoredFile.of(path, file.path, found) for file, path, found in described)
            return self.put(entry.folder, replace(entry.record, files=files))


def _not_now() -> None:
    raise CacheError("another tritgguf is changing it")


def damaged(entry: Entry, what: str) -> CacheError:
    """Return the error for a model whose files aren't what they were."""
    name = entry.record.name
    return CacheError(f"{name} is damaged in the cache: {what}; `tritgguf pull {name}` makes it again")


def record_bytes(record: Record) -> bytes:
    """Return what the file of a record holds."""
    return (json.dumps(record.as_json(), indent=1) + "\n").encode()


def digest(path: Path, step: Step | None = None) -> str:
    """Return a file's SHA-256 in hexadecimal, as sha256sum prints it; raise CacheError where it can't be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(_READ_BYTES))
            while n_bytes := file.readinto(buffer):
                found.update(buffer[:n_bytes])
                if step:
                    step(n_bytes)
    except OSError as error:
        raise CacheError(f"{path} can't be read: {error.strerror}") from error
    return found.hexdigest()
