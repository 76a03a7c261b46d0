"""Fetch files of a repository into huggingface_hub's cache, each going on where an earlier run was stopped.

huggingface_hub itself fetches a file from its start again after its process has ended. What comes here is written to
blobs/ETAG.incomplete, whatever ends the process, and gets its name when its size is right and its SHA-256, where the
hub tells it. huggingface_hub then finds it there and links to it.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, BinaryIO

from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.client import hub
from tritgguf.runtime.hub.snapshot import RemoteFile, Snapshot

if TYPE_CHECKING:
    from httpx2 import Response

STAGE = "downloading"
AT_ONCE = 4  # files
TRIES = 6  # without a new byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds between them
LONGEST_PAUSE = 60  # seconds; a server that asks for more gets an error
BUSY = (408, 429, 500, 502, 503, 504)
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS = 64


class _StoppedError(Exception):
    """Another file failed, or the user stopped the command."""


def fetch(snapshot: Snapshot, paths: Sequence[str], progress: Progress | None = None) -> None:
    """Fetch the files that aren't in the cache, and link to all under their names.

    `progress` is called with "downloading", the bytes done, those of earlier runs included, and the total bytes.
    Raises HubError, and what huggingface_hub, its connections and the disk raise.
    """
    missing = [snapshot.files[path] for path in snapshot.missing(paths)]
    if not missing:
        return
    blobs = snapshot.storage / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    ours = [file for file in missing if _is_fetched_here(file)]
    _require_space(snapshot, missing, blobs)
    step = counted(progress, STAGE, sum(file.n_bytes for file in ours))
    for n_bytes in _transferred(snapshot, ours, blobs):
        step(n_bytes)
    _link(snapshot, [file.path for file in missing])


def _is_fetched_here(file: RemoteFile) -> bool:
    """Whether the hub tells the blob's name, and sends such a file by plain HTTP; huggingface_hub fetches others."""
    from huggingface_hub import constants

    known = file.etag is not None and _ETAG.fullmatch(file.etag)
    return bool(known) and file.n_bytes <= constants.MAX_HTTP_DOWNLOAD_SIZE


def _require_space(snapshot: Snapshot, files: Sequence[RemoteFile], blobs: Path) -> None:
    """Raise HubError before a byte is fetched where the disk can't hold the files."""
    names = {file.etag or file.path: file.n_bytes for file in files}  # files of the same content are one blob
    wanted = {name: n_bytes for name, n_bytes in names.items() if not (blobs / name).exists()}
    there = sum(part.stat().st_size for name in wanted if (part := _incomplete(blobs, name)).exists())
    needed, free = sum(wanted.values()) - there, shutil.disk_usage(blobs).free
    if needed > free:
        raise HubError(
            f"{snapshot.name} needs {format_size(needed)}, but the disk of {blobs.parent.parent} has "
            f"{format_size(free)} left: free some, or set HF_HOME to a folder on another disk"
        )


def _transferred(snapshot: Snapshot, files: Sequence[RemoteFile], blobs: Path) -> Iterator[int]:
    """Fetch the files, several at a time, and yield numbers of bytes as they come; raise the first error."""
    waiting: SimpleQueue[RemoteFile | None] = SimpleQueue()
    events: SimpleQueue[int | BaseException | None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        while (file := waiting.get()) is not None and not stop.is_set():
            try:
                _fetch_one(snapshot, file, blobs, events.put, stop)
                events.put(None)
            except BaseException as error:
                events.put(error)

    threads = min(AT_ONCE, len(files))
    for item in (*sorted(files, key=lambda file: -file.n_bytes), *[None] * threads):
        waiting.put(item)
    for _ in range(threads):
        Thread(target=work, daemon=True).start()  # daemon: a stalled connection doesn't keep the process
    left = len(files)
    try:
        while left:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        stop.set()


def _fetch_one(snapshot: Snapshot, file: RemoteFile, blobs: Path, report: Callable[[int], None], stop: Event) -> None:
    """Fetch one file unless its blob is there; report the bytes that are there or come, negative if they go again."""
    from huggingface_hub.utils import WeakFileLock

    assert file.etag is not None
    lock = blobs.parent.parent / ".locks" / blobs.parent.name / f"{file.etag}.lock"  # huggingface_hub's own
    lock.parent.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / file.etag, _incomplete(blobs, file.etag)
    with WeakFileLock(lock):
        if blob.exists():
            report(file.n_bytes)
            return
        with part.open("ab") as out:
            arriving = _Arriving(file, part, out, report)
            while arriving.n_bytes < file.n_bytes and not _received(snapshot, arriving, stop):
                pass
        arriving.require_sound()
        part.replace(blob)


class _Arriving:
    """A file that is being fetched: what there is of it, and its digest so far."""

    def __init__(self, file: RemoteFile, part: Path, out: BinaryIO, report: Callable[[int], None]) -> None:
        self.file, self.part, self.out, self._report = file, part, out, report
        self._digest = hashlib.sha256()
        self.n_bytes = self._most = 0
        self.tries = 0  # in a row without a new byte
        left = out.tell()
        if left > file.n_bytes:
            out.truncate(0)
            left = 0
        with part.open("rb") as earlier:
            while left and (piece := earlier.read(min(left, 1 << 20))):
                self._count(piece)
                left -= len(piece)

    def add(self, piece: bytes) -> None:
        if self.n_bytes + len(piece) > self.file.n_bytes:
            self._refuse("more")
        self.out.write(piece)
        self.out.flush()  # so that nothing of it comes again, whatever ends the process
        self._count(piece)
        if self.n_bytes > self._most:
            self._most, self.tries = self.n_bytes, 0

    def restart(self) -> None:
        """Forget what was fetched: the server sends the file from its start."""
        self.out.truncate(0)
        self._report(-self.n_bytes)
        self.n_bytes, self._digest = 0, hashlib.sha256()

    def require_sound(self) -> None:
        """Raise HubError, and forget the file, where its size or its digest isn't the one that the hub tells."""
        etag = self.file.etag or ""
        if self.n_bytes < self.file.n_bytes:
            self._refuse("fewer")
        if len(etag) == _SHA256_DIGITS and self._digest.hexdigest() != etag:
            self._refuse("others")

    def _count(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.n_bytes += len(piece)
        self._report(len(piece))

    def _refuse(self, what: str) -> None:
        self.out.close()
        self.part.unlink(missing_ok=True)
        raise HubError(
            f"{self.file.path}: the bytes that came are {what} than the hub promised: run the command again, which "
            "fetches this file anew; if that doesn't help, check HTTPS_PROXY and HF_ENDPOINT"
        )


def _received(snapshot: Snapshot, arriving: _Arriving, stop: Event) -> bool:
    """Ask for the rest of the file once, write what comes, and return whether that was all that the server has.

    Pause where the server or the connection fails; raise their error where that is the last try.
    """
    from httpx2 import TransportError
    from huggingface_hub.utils import hf_raise_for_status

    try:
        with _ranged(_url(snapshot, arriving.file), arriving.n_bytes) as response:
            if response.status_code in BUSY and arriving.tries + 1 < TRIES and _waits(response, arriving.tries, stop):
                arriving.tries += 1
                return False
            hf_raise_for_status(response)
            if arriving.n_bytes and response.status_code == 200:
                arriving.restart()
            for piece in response.iter_bytes():
                if stop.is_set():
                    raise _StoppedError
                arriving.add(piece)
            return True
    except TransportError:
        arriving.tries += 1
        if arriving.tries >= TRIES:
            raise
        stop.wait(PAUSES[arriving.tries - 1])
    if stop.is_set():
        raise _StoppedError
    return False


def read_range(snapshot: Snapshot, file: RemoteFile, first: int, n_bytes: int) -> bytes:
    """Return that part of a file; raise what `fetch` raises."""
    from httpx2 import TransportError

    for tries in range(TRIES):
        try:
            with _ranged(_url(snapshot, file), first, first + n_bytes - 1) as response:
                if response.status_code in BUSY and tries + 1 < TRIES and _waits(response, tries, Event()):
                    continue
                return _part(response, file, first, n_bytes)
        except TransportError:
            if tries + 1 == TRIES:
                raise
            time.sleep(PAUSES[tries])
    raise AssertionError


def _part(response: Response, file: RemoteFile, first: int, n_bytes: int) -> bytes:
    """Return the part that was asked for; a server may send the whole file, which is left when it has come."""
    from huggingface_hub.utils import hf_raise_for_status

    hf_raise_for_status(response)
    skipped = first if response.status_code == 200 else 0
    received = bytearray()
    for piece in response.iter_bytes():
        received += piece
        if len(received) >= skipped + n_bytes:
            break
    found = bytes(received[skipped : skipped + n_bytes])
    if len(found) < n_bytes:
        raise HubError(f"{file.path}: the hub sent {len(found)} of {n_bytes} bytes; try again, or check HF_ENDPOINT")
    return found


def _url(snapshot: Snapshot, file: RemoteFile) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(snapshot.name.repo, file.path, repo_type=snapshot.name.kind, revision=snapshot.commit)


@contextmanager
def _ranged(url: str, first: int, last: int | None = None) -> Iterator[Response]:
    """Ask for a file from byte `first` on, to `last` at most, and yield the answer, whatever its status.

    The token goes to the hub alone, not to the other servers that it sends a request on to.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    headers = build_hf_headers(library_name=hub().library_name, library_version=hub().library_version)
    headers["Accept-Encoding"] = "identity"  # else bytes couldn't be counted
    if first or last is not None:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        yield response


def _waits(response: Response, tries: int, stop: Event) -> bool:
    """Wait as long as a busy server asks for, or a little; return False where that is too long."""
    asked = response.headers.get("Retry-After", "")
    seconds = float(asked) if asked.isdecimal() else PAUSES[tries]
    if seconds > LONGEST_PAUSE:
        return False
    stop.wait(seconds)
    return True


def _link(snapshot: Snapshot, paths: Sequence[str]) -> None:
    """Have huggingface_hub link to the blobs, and note which files the repository has."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    # Its bar would come after ours; who sets HF_HUB_DISABLE_PROGRESS_BARS=0 gets both.
    with disable_progress_bars() if constants.HF_HUB_DISABLE_PROGRESS_BARS is None else nullcontext():
        snapshot_download(
            snapshot.name.repo,
            repo_type=snapshot.name.kind,
            revision=snapshot.commit,
            allow_patterns=[glob.escape(path) for path in paths],
            library_name=hub().library_name,
            library_version=hub().library_version,
        )


def _incomplete(blobs: Path, etag: str) -> Path:
    return blobs / f"{etag}.incomplete"
