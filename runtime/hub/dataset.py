"""Get a dataset's text from the hub: a small file whole, into huggingface_hub's cache, of a large one the start.

The start is kept as JSON lines beside that cache, where huggingface_hub keeps what other programs make of its files:
HF_HOME/assets/tritgguf/datasets--org--name/COMMIT/PATH.jsonl.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from tritgguf.converter.calibration.documents import MOST_BYTES, PARQUET, Document, documents, documents_in
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.client import hub
from tritgguf.runtime.hub.dataset_selection import choose_text
from tritgguf.runtime.hub.explain import explained, no_answer
from tritgguf.runtime.hub.names import DatasetName
from tritgguf.runtime.hub.snapshot import (
    COMMIT,
    RemoteFile,
    Snapshot,
    in_the_cache,
    known_commit,
    on_the_hub,
    remember_commit,
)
from tritgguf.runtime.hub.transfer import STAGE, fetch, read_range

WHOLE_BYTES = 32 << 20  # of the largest file that is fetched whole
START_BYTES = MOST_BYTES // 2  # of text: as JSON it is longer, and still read whole
MOST_FETCHED = 64 << 20  # for a start
_PIECE_BYTES = 1 << 20
_ENDING = ".jsonl"


@dataclass(frozen=True)
class DatasetText:
    """A text on this disk: of the repository's `file`, of which `n_shards` have the same name but for a number.

    `whole` tells whether it is that file, or only its start. `kept` is the folder for what is made of the files.
    """

    path: Path
    name: DatasetName
    file: str
    n_shards: int
    whole: bool
    kept: Path

    def __str__(self) -> str:
        """What is read, for a note."""
        shards = "" if self.n_shards == 1 else f", the first of {self.n_shards} files"
        start = "" if self.whole else f", the start of it ({format_size(self.path.stat().st_size)})"
        return f"{self.name} is {self.file}{shards}{start}"


def dataset_text(name: DatasetName, *, on_progress: Progress | None = None) -> DatasetText:
    """Fetch the text that a name stands for, unless it is here, and return where it is.

    `on_progress` is called with "downloading", the bytes done and the total bytes. Without a network, what is here will
    do. Raises HubError, which says what to do, and SourceError where the file can't be read.
    """
    hub()
    with explained(name):
        if name.revision is not None and COMMIT.fullmatch(name.revision) and (here := _in_cache(name)):
            return here
        try:
            snapshot = on_the_hub(name)
        except Exception as error:
            if not no_answer(error) or (here := _in_cache(name)) is None:
                raise
            return here
        file, n_shards = choose_text(name, snapshot.files)
        found = _here(snapshot, file, n_shards)
        if found is None:
            found = _fetched(snapshot, snapshot.files[file], n_shards, on_progress)
        remember_commit(snapshot)
        return found


def _in_cache(name: DatasetName) -> DatasetText | None:
    """Return the text where it is here, at the revision's last known commit."""
    commit = known_commit(name)
    if commit is None:
        return None
    snapshot = in_the_cache(name, commit) or Snapshot(name, commit, {})
    starts = _starts(snapshot)
    kept = [path.relative_to(starts).as_posix().removesuffix(_ENDING) for path in starts.rglob(f"*{_ENDING}")]
    try:
        return _here(snapshot, *choose_text(name, {*snapshot.files, *kept}))
    except HubError:  # such as that of a repository of which another program fetched a part
        return None


def _starts(snapshot: Snapshot) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE).expanduser() / "tritgguf" / snapshot.storage.name / snapshot.commit


def _here(snapshot: Snapshot, file: str, n_shards: int) -> DatasetText | None:
    assert isinstance(snapshot.name, DatasetName)
    start, whole = _starts(snapshot) / f"{file}{_ENDING}", snapshot.folder / file
    for path in (start, whole):
        if path.is_file():
            return DatasetText(path, snapshot.name, file, n_shards, path == whole, _starts(snapshot))
    return None


def _fetched(snapshot: Snapshot, file: RemoteFile, n_shards: int, progress: Progress | None) -> DatasetText:
    if file.n_bytes <= WHOLE_BYTES:
        fetch(snapshot, [file.path], progress)
    else:
        _keep_start(snapshot, file, progress)
    found = _here(snapshot, file.path, n_shards)
    assert found is not None
    return found


def _keep_start(snapshot: Snapshot, file: RemoteFile, progress: Progress | None) -> None:
    """Write the documents at a file's start, each a line; raise HubError where they are too far from each other."""
    step, n_documents = counted(progress, STAGE, START_BYTES), 0
    with _new(_starts(snapshot) / f"{file.path}{_ENDING}") as out:
        for document in _documents(snapshot, file):
            out.write(_line(document))
            step(document.n_bytes)
            n_documents += 1
        if not n_documents:
            raise HubError(f"{snapshot.name}: {file.path} has no whole document in its first bytes: name another file")


@contextmanager
def _new(place: Path) -> Iterator[TextIO]:
    """Yield a text file to write, which gets its name when the block ends without an error."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="replace", newline="") as out:
            yield out
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def plain_text(found: DatasetText) -> Path:
    """Write a dataset's texts one behind the other into one file, and return where it is.

    Raises HubError where they are conversations, SourceError where they can't be read.
    """
    place = found.kept / f"{found.file}.txt"
    with explained(found.name), _new(place) as out:
        for document in documents(found.path):
            if not isinstance(document.content, str):
                raise HubError(f"{document.place}: is a conversation; expected plain text: name another dataset")
            out.write(document.content)
    return place


def _line(document: Document) -> str:
    """Return a document as a line that is read as the same one."""
    content = document.content
    entry = {"text": content.removesuffix("\n")} if isinstance(content, str) else {"messages": content}
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _documents(snapshot: Snapshot, file: RemoteFile) -> Iterator[Document]:
    remote = _RemoteStream(snapshot, file)
    name = f"{snapshot.name.path}:{file.path}"
    # Parquet is read from many places, each in pieces of its own; a buffer would fetch more than them.
    stream = remote if file.path.lower().endswith(PARQUET) else io.BufferedReader(remote, _PIECE_BYTES)
    yield from documents_in(cast(BinaryIO, stream), name, START_BYTES)


class _RemoteStream(io.RawIOBase):
    """A file on the hub, read by range requests; raises HubError where they come to more than MOST_FETCHED."""

    def __init__(self, snapshot: Snapshot, file: RemoteFile) -> None:
        self._snapshot, self._file, self._position, self._n_fetched = snapshot, file, 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._file.n_bytes)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n_bytes = min(len(buffer), self._file.n_bytes - self._position)
        if n_bytes <= 0:
            return 0
        self._n_fetched += n_bytes
        if self._n_fetched > MOST_FETCHED:
            raise HubError(
                f"{self._snapshot.name}: of {self._file.path} ({format_size(self._file.n_bytes)}), more than "
                f"{format_size(MOST_FETCHED)} would have to be fetched for some text: name another file"
            )
        buffer[:n_bytes] = read_range(self._snapshot, self._file, self._position, n_bytes)
        self._position += n_bytes
        return n_bytes
