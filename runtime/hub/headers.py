"""A folder to plan from: a repository's small files, and of its weights only the headers, by range requests.

The headers lie in the subfolder `headers`, where the converter looks for them (checkpoint/header_files.py). The folders
above are named as in huggingface_hub's cache, which tells the model's name and commit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tritgguf.converter.checkpoint.header_files import FOLDER
from tritgguf.converter.checkpoint.safetensors_reader import LENGTH_BYTES, MAX_HEADER_BYTES
from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.download import Downloaded, download, in_cache, wanted
from tritgguf.runtime.hub.explain import explained, no_answer
from tritgguf.runtime.hub.library import hub
from tritgguf.runtime.hub.names import ModelName
from tritgguf.runtime.hub.selection import Choice, choose, small_files
from tritgguf.runtime.hub.snapshot import COMMIT, Snapshot, on_the_hub
from tritgguf.runtime.hub.transfer import AT_ONCE, fetch, read_range

FIRST_BYTES = 1 << 14  # mostly the whole header of a file of some gigabytes


@contextmanager
def headers(name: ModelName, *, on_progress: Progress | None = None) -> Iterator[Downloaded]:
    """Yield a folder with the headers of a model's weights, which is removed when the block ends; else as `download`.

    Where all of the model is in the cache, that is the snapshot itself. GGUF files are downloaded. PyTorch's files have
    no header at their start: the folder has no weights then.
    """
    hub()
    with explained(name):
        snapshot = _not_here(name)
        choice = None if snapshot is None else choose(name, snapshot.files, "checkpoint")
        if snapshot is not None and choice is not None and choice.main is None:
            index = [] if choice.index is None else [choice.index]
            fetch(snapshot, [*small_files(snapshot.files), *index], on_progress)
    if snapshot is None or choice is None or choice.main is not None:
        yield download(name, on_progress=on_progress)
        return
    # Windows doesn't remove files that are still mapped.
    with tempfile.TemporaryDirectory(prefix="tritgguf-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / snapshot.storage.name / "snapshots" / snapshot.commit
        with explained(name):
            _fill(folder, snapshot, choice)
        yield Downloaded(folder, name.repo, snapshot.commit)


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


def _fill(folder: Path, snapshot: Snapshot, choice: Choice) -> None:
    """Copy the small files, and write each weights file as far as its header goes."""
    small = small_files(snapshot.files)
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
        (cut_off / Path(path).name).write_bytes(header)


def _header(snapshot: Snapshot, path: str) -> bytes:
    """Return a safetensors file up to the end of its header; raise HubError where it has none."""
    file = snapshot.files[path]
    start = read_range(snapshot, file, 0, min(FIRST_BYTES, file.n_bytes)) if file.n_bytes else b""
    end = LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")
    if end > min(file.n_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
        raise HubError(f"{snapshot.name}: {path} isn't a safetensors file; the repository is damaged")
    return start[:end] if end <= len(start) else start + read_range(snapshot, file, len(start), end - len(start))
