"""A model to plan from: a repository's small files, and of its weights only the headers, by range requests.

A checkpoint's headers lie in the subfolder `headers`, where the converter looks for them (checkpoint/header_files.py).
The folders above are named as in huggingface_hub's cache, which tells the model's name and commit.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf import Keys

from tritgguf.converter.checkpoint.header_files import FOLDER
from tritgguf.converter.checkpoint.safetensors_reader import LENGTH_BYTES, MAX_HEADER_BYTES
from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.errors import HubError, SourceError
from tritgguf.converter.gguf_io.header_reader import MAGIC, HeaderReader
from tritgguf.converter.gguf_io.reader import DEFAULT_ALIGNMENT
from tritgguf.converter.model.rope import LONGROPE_SETS, ROPE_FREQS
from tritgguf.runtime.hub.client import hub
from tritgguf.runtime.hub.download import download, in_cache, wanted
from tritgguf.runtime.hub.explain import explained, no_answer
from tritgguf.runtime.hub.names import ModelName
from tritgguf.runtime.hub.selection import Choice, choose, small_files
from tritgguf.runtime.hub.snapshot import COMMIT, Snapshot, on_the_hub
from tritgguf.runtime.hub.transfer import AT_ONCE, fetch, read_range

FIRST_BYTES = 1 << 14  # mostly the whole header of a file of some gigabytes
DIVISORS = (ROPE_FREQS, *LONGROPE_SETS.values())
MAX_DIVISOR_BYTES = 1 << 16
MAX_GGUF_HEADER_BYTES = 1 << 28  # of a damaged file, whose header has no end; vocabularies take some megabytes


@dataclass(frozen=True)
class Readable:
    """A model to read from; `values` tells whether its weights are there, or no more than their headers."""

    path: Path
    values: bool


@contextmanager
def headers(name: ModelName, *, gguf: bool = False, on_progress: Progress | None = None) -> Iterator[Readable]:
    """Yield a folder with the headers of a model's weights, which is removed when the block ends.

    Where all of the model is in the cache, that is the snapshot itself, with the weights. Of a GGUF file the header
    comes if `gguf` says that it will do, else the whole file. PyTorch's files have no header at their start: the folder
    has no weights then. `on_progress` and errors are those of `download`.
    """
    hub()
    with explained(name):
        snapshot = _not_here(name)
        choice = None if snapshot is None else choose(name, snapshot.files, "checkpoint")
    if snapshot is None or choice is None or (choice.main is not None and not gguf):
        yield Readable(download(name, on_progress=on_progress).path, True)
        return
    # Windows doesn't remove files that are still mapped.
    with tempfile.TemporaryDirectory(prefix="tritgguf-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / snapshot.storage.name / "snapshots" / snapshot.commit
        with explained(name):
            if choice.main is None:
                _fill(folder, snapshot, choice, on_progress)
            else:
                _hollow_out(folder, snapshot, choice)
        yield Readable(folder / (choice.main or ""), False)


def _not_here(name: ModelName) -> Snapshot | None:
    """Return what the hub says of a model; None where all of it is in the cache, or the hub gives no answer."""
    if name.revision is not None and COMMIT.fullmatch(name.revision) and in_cache(name):
        return None
    try:
        snapshot = on_the_hub(name)
    except Exception as error:
        if not no_answer(error):
            raise
        return None
    return None if in_cache(name, commit=snapshot.commit) else snapshot


def _fill(folder: Path, snapshot: Snapshot, choice: Choice, on_progress: Progress | None) -> None:
    """Fetch and copy the small files, and write each weights file as far as its header goes."""
    small = small_files(snapshot.files)
    fetch(snapshot, [*small, *([] if choice.index is None else [choice.index])], on_progress)
    for path in small:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot.folder / path, place)
    weights = [path for path in wanted(snapshot, choice) if path.endswith(".safetensors") and path not in small]
    if not weights:
        return
    cut_off = folder / FOLDER
    cut_off.mkdir()
    if choice.index is not None:
        shutil.copyfile(snapshot.folder / choice.index, cut_off / choice.index)
    for path, header in zip(weights, parallel(partial(_header, snapshot), weights, AT_ONCE), strict=True):
        place = cut_off / path  # as the index names it: files in two folders may have the same name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(header)


def _header(snapshot: Snapshot, path: str) -> bytes:
    """Return a safetensors file up to the end of its header; raise HubError where it has none."""
    file = snapshot.files[path]
    start = read_range(snapshot, file, 0, min(FIRST_BYTES, file.n_bytes)) if file.n_bytes else b""
    end = LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")
    if end > min(file.n_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
        raise HubError(f"{snapshot.name}: {path} isn't a safetensors file; the repository is damaged")
    return start[:end] if end <= len(start) else start + read_range(snapshot, file, len(start), end - len(start))


def _hollow_out(folder: Path, snapshot: Snapshot, choice: Choice) -> None:
    """Write GGUF files of the right sizes that hold nothing behind their headers: holes, which take no disk."""
    for path in choice.files:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        start, divisors = _gguf_header(snapshot, path)
        with place.open("wb") as file:
            file.write(start)
            file.truncate(snapshot.files[path].n_bytes)
            for first, n_bytes in divisors:
                file.seek(first)
                file.write(read_range(snapshot, snapshot.files[path], first, n_bytes))


def _gguf_header(snapshot: Snapshot, path: str) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the start of a GGUF file with all of its header, most of which is the vocabulary: how long isn't known.

    Also return `_divisors` of it.
    """
    file, start = snapshot.files[path], b""
    while len(start) < file.n_bytes:
        n_bytes = min(max(FIRST_BYTES, 3 * len(start)), file.n_bytes - len(start))
        start += read_range(snapshot, file, len(start), n_bytes)
        if not start.startswith(MAGIC) or len(start) > MAX_GGUF_HEADER_BYTES:
            raise HubError(f"{snapshot.name}: {path} isn't a GGUF file that can be read; the repository is damaged")
        with suppress(SourceError):  # which says that it is cut off, until the next part is there
            header = HeaderReader(Path(path), start)
            return start, _divisors(header, file.n_bytes)
    return start, []


def _divisors(header: HeaderReader, file_bytes: int) -> list[tuple[int, int]]:
    """Return first byte and length of the tensors whose values say how positions are rotated: half a kilobyte or so."""
    metadata, tensors = header.metadata(arrays=()), header.tensors()
    alignment = metadata[Keys.General.ALIGNMENT].data if Keys.General.ALIGNMENT in metadata else DEFAULT_ALIGNMENT
    if not isinstance(alignment, int) or alignment < 1:  # which is refused when the file is read
        return []
    start = -(-header.position // alignment) * alignment
    found = [tensors[name] for name in DIVISORS if name in tensors]
    places = [(start + tensor.offset, 4 * math.prod(tensor.shape)) for tensor in found]  # float32, as llama.cpp wants
    return [(first, n) for first, n in places if n <= MAX_DIVISOR_BYTES and first + n <= file_bytes]
