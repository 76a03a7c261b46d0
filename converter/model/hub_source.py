"""Where on Hugging Face's hub a model is from: read off its place in huggingface_hub's cache, kept in general.source.*.

The cache has the files of org/name in models--org--name/snapshots/COMMIT
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from gguf import Keys

from tritgguf.converter.gguf_io.metadata import Metadata, string

SITE = "https://huggingface.co"
SNAPSHOTS, MODELS = "snapshots", "models--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_URL = re.compile(
    rf"{SITE}/(?P<repo>[\w.-]+/[\w.-]+)/(?:tree/(?P<tree>[0-9a-f]{{40}})|blob/(?P<blob>[0-9a-f]{{40}})/(?P<file>.+))"
)


@dataclass(frozen=True)
class HubSource:
    """A repository at a commit, 40 hex digits; `file` is the GGUF file in it, None for a folder."""

    repo: str
    commit: str
    file: str | None = None

    @property
    def url(self) -> str:
        """The page that shows it."""
        page = f"tree/{self.commit}" if self.file is None else f"blob/{self.commit}/{quote(self.file)}"
        return f"{SITE}/{self.repo}/{page}"


def repository_of(folder: Path) -> str | None:
    """Return "org/name" for the folder of a snapshot in huggingface_hub's cache; None for another folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != SNAPSHOTS or not repository.startswith(MODELS):
        return None
    return repository.removeprefix(MODELS).replace("--", "/")


def hub_source(path: Path) -> HubSource | None:
    """Return where a folder, or a GGUF file, is from; None where it isn't in huggingface_hub's cache."""
    if not path.is_file():
        folder = path.resolve()
        repo = repository_of(folder)
        return HubSource(repo, folder.name) if repo is not None and _COMMIT.fullmatch(folder.name) else None
    place = path.parent.resolve() / path.name  # the link, not the file that is named after its digest
    for folder in place.parents:
        repo = repository_of(folder)
        if repo is not None and _COMMIT.fullmatch(folder.name):
            return HubSource(repo, folder.name, place.relative_to(folder).as_posix())
    return None


def source_metadata(path: Path) -> Metadata:
    """Return the keys that tell where a model is from, none where that isn't known."""
    source = hub_source(path)
    if source is None:
        return {}
    return {
        Keys.General.SOURCE_URL: string(source.url),
        Keys.General.SOURCE_REPO_URL: string(f"{SITE}/{source.repo}"),
    }


def recorded_source(metadata: Metadata) -> HubSource | None:
    """Return what `source_metadata` has written into a file; None where nothing of it is there."""
    key = metadata.get(Keys.General.SOURCE_URL)
    match = _URL.fullmatch(key.data) if key is not None and isinstance(key.data, str) else None
    if match is None:
        return None
    return HubSource(match["repo"], match["tree"] or match["blob"], match["file"] and unquote(match["file"]))
