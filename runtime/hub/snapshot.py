"""A repository at a commit: the files that it has, and where huggingface_hub keeps them on this disk.

The cache has the layout of https://huggingface.co/docs/huggingface_hub/guides/manage-cache, so that other programs
find what is fetched here, and the other way round: models--org--name/blobs/ETAG are the files, snapshots/COMMIT/PATH
links to them, refs/REVISION holds a commit. Datasets have datasets--org--name.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.client import hub, site
from tritgguf.runtime.hub.names import ENDPOINT_VARIABLE, Kind, RepositoryName

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 30  # for an answer about a repository


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `etag` is its name among the blobs, None where only the hub knows it.

    A large file's etag is its SHA-256, others have their git blob's SHA-1.
    """

    path: str
    n_bytes: int
    etag: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit, and the files that it has there, by their paths."""

    name: RepositoryName
    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def storage(self) -> Path:
        """The repository's folder in the cache."""
        return storage(self.name.repo, self.name.kind)

    @property
    def folder(self) -> Path:
        """Where the fetched files of this commit are, under their own names."""
        return self.storage / "snapshots" / self.commit

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the files that aren't in the cache."""
        return [path for path in paths if not (self.folder / path).is_file()]


def storage(repo: str, kind: Kind = "model") -> Path:
    """Return a repository's folder in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"{kind}s--{repo.replace('/', '--')}"


def on_the_hub(name: RepositoryName) -> Snapshot:
    """Ask the hub, in one request, for the commit that a name stands for and for its files."""
    try:
        ask = hub().dataset_info if name.kind == "dataset" else hub().model_info
        info = ask(name.repo, revision=name.revision, timeout=TIMEOUT_SECONDS, files_metadata=True)
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # what reading another server's answer raises
        if isinstance(error, (OSError, UnicodeEncodeError)):
            raise
        info = None
    if info is None or info.sha is None or not COMMIT.fullmatch(info.sha):
        raise HubError(f"{name}: {site()} doesn't answer as a hub does; check {ENDPOINT_VARIABLE}")
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or ()
        if _is_plain(file.rfilename)
    ]
    return Snapshot(name, info.sha, {file.path: file for file in files})


def _is_plain(path: str) -> bool:
    """Whether a path stays in the repository's folder, on any system, and can be printed and opened."""
    return path.isprintable() and not any(
        part in ("", ".", "..") or "\\" in part or ":" in part for part in path.split("/")
    )


def in_the_cache(name: RepositoryName, commit: str | None = None) -> Snapshot | None:
    """Return a repository as the cache knows it; None where it was never fetched, or not at this commit or revision."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    hub()
    commit = commit or known_commit(name)
    if commit is None:
        return None
    try:
        listed = get_cached_repo_tree(name.repo, repo_type=name.kind, revision=commit)
        files = [RemoteFile(file.path, file.size) for file in listed if _is_plain(file.path)]
    except CachedRepoTreeNotFoundError:  # another program fetched it, file by file
        folder = storage(name.repo, name.kind) / "snapshots" / commit
        found = (path for path in folder.rglob("*") if path.is_file())
        files = [RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in found]
    return Snapshot(name, commit, {file.path: file for file in files}) if files else None


def known_commit(name: RepositoryName) -> str | None:
    """Return the commit that the revision stood for when it was last fetched; None if it never was."""
    revision = name.revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    with suppress(OSError, ValueError):
        commit = _ref(name, revision).read_text("utf-8").strip()
        return commit if COMMIT.fullmatch(commit) else None
    return None


def remember_commit(snapshot: Snapshot) -> None:
    """Note which commit the revision stands for, so that it is found without a network, where the cache is writable."""
    revision = snapshot.name.revision or "main"
    if revision == snapshot.commit or known_commit(snapshot.name) == snapshot.commit:
        return
    place = _ref(snapshot.name, revision)
    temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}.tmp")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(snapshot.commit, "utf-8")
        temporary.replace(place)


def _ref(name: RepositoryName, revision: str) -> Path:
    """Return the file that holds a revision's commit; raise HubError for a revision that leads elsewhere."""
    refs = storage(name.repo, name.kind) / "refs"
    place = Path(os.path.normpath(refs / revision))
    if refs not in place.parents:
        raise HubError(f"{revision:.200} can't be a revision of {name.path}: give a branch, a tag or a commit")
    return place
