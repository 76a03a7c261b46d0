"""Get a model from the hub onto this disk: only the files that are needed, each fetched once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.client import hub
from tritgguf.runtime.hub.explain import explained, no_answer
from tritgguf.runtime.hub.names import ModelName
from tritgguf.runtime.hub.selection import Choice, Prefer, choose, shards
from tritgguf.runtime.hub.snapshot import COMMIT, Snapshot, in_the_cache, known_commit, on_the_hub, remember_commit
from tritgguf.runtime.hub.transfer import fetch


@dataclass(frozen=True)
class Downloaded:
    """A model on this disk, in huggingface_hub's cache: its files aren't to be changed.

    `path` is the folder with config.json, or the GGUF file, of a split one the first part. `commit` has 40 hex digits.
    """

    path: Path
    repo: str
    commit: str


def download(name: ModelName, *, on_progress: Progress | None = None, prefer: Prefer = "checkpoint") -> Downloaded:
    """Fetch what a model needs, unless it is here, and return where it is.

    That is a GGUF file where `name.file` says so, or where the repository holds one and no checkpoint (config.json and
    weights), or with `prefer` "gguf"; else the checkpoint. `on_progress` is called with "downloading", the bytes done
    and the total bytes. Without a network, what is here will do. Raises HubError, which says what to do.
    """
    hub()
    with explained(name):
        if name.revision is not None and COMMIT.fullmatch(name.revision) and (here := in_cache(name, prefer)):
            return here
        try:
            snapshot = on_the_hub(name)
        except Exception as error:
            if not no_answer(error) or (here := in_cache(name, prefer)) is None:
                raise
            return here
        choice = choose(name, snapshot.files, prefer)
        if choice.index is not None:
            fetch(snapshot, [choice.index])
        fetch(snapshot, wanted(snapshot, choice), on_progress)
        remember_commit(snapshot)
        return downloaded(snapshot, choice)


def in_cache(name: ModelName, prefer: Prefer = "checkpoint", commit: str | None = None) -> Downloaded | None:
    """Return the model where all of it is in the cache, at that commit or the revision's last known one; else None."""
    snapshot = in_the_cache(name, commit)
    if snapshot is None:
        return None
    try:
        choice = choose(name, snapshot.files, prefer)
        index = [] if choice.index is None else [choice.index]
        if snapshot.missing(index) or snapshot.missing(wanted(snapshot, choice)):
            return None
    except HubError:  # such as that of a repository of which another program fetched a part
        return None
    return downloaded(snapshot, choice)


def commit_of(name: ModelName) -> str:
    """Return the commit that a name stands for now, 40 hex digits; nothing is fetched.

    Without an answer from the hub, that is the commit of the last time. Raises HubError where there was none, or where
    the hub has no such model or revision.
    """
    hub()
    if name.revision is not None and COMMIT.fullmatch(name.revision):
        return name.revision
    with explained(name):
        try:
            return on_the_hub(name).commit
        except Exception as error:
            if not no_answer(error) or (commit := known_commit(name)) is None:
                raise
            return commit


def wanted(snapshot: Snapshot, choice: Choice) -> list[str]:
    """Return all files of a choice; its index must be here."""
    if choice.index is None:
        return list(choice.files)
    text = (snapshot.folder / choice.index).read_text("utf-8", "replace")
    return [*choice.files, *shards(snapshot.name, choice.index, text, snapshot.files)]


def downloaded(snapshot: Snapshot, choice: Choice) -> Downloaded:
    """Return where a fetched choice is."""
    path = snapshot.folder if choice.main is None else snapshot.folder / choice.main
    return Downloaded(path, snapshot.name.repo, snapshot.commit)
