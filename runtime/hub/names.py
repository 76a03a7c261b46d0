"""Names of models and datasets on the hub, huggingface.co or HF_ENDPOINT's, and how to tell them from paths."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, TypeVar
from urllib.parse import unquote

from tritgguf.converter.errors import HubError

ENDPOINT_VARIABLE = "HF_ENDPOINT"
FORMS = "org/name, org/name@revision or org/name:FILE.gguf"
DATASET_FORMS = "datasets/org/name, datasets/org/name@revision or datasets/org/name:FILE"
Kind: TypeAlias = Literal["model", "dataset"]  # of a repository, in huggingface_hub's words
_DATASETS = "datasets/"

# What `validate_repo_id` in huggingface_hub takes, where an organization is named.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@:\s]+))?(?::(?P<file>[^@:]+))?")
# The address of a page on the hub: of a folder, or of a file.
_PAGE = re.compile(rf"(?P<repo>{_PART}/{_PART})/(?:tree|blob|resolve)/(?P<revision>[^/\s]+)(?:/(?P<file>.+\.gguf))?")
_DATASET_PAGE = re.compile(rf"(?P<repo>{_PART}/{_PART})/(?:tree|blob|resolve)/(?P<revision>[^/\s]+)(?:/(?P<file>.+))?")
_SITE = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
# How the names of files end that a folder of models, or of texts, may hold.
_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json", ".zip")
_TEXTS = (".txt", ".md", ".json", ".jsonl", ".gz", ".parquet")


@dataclass(frozen=True)
class RepositoryName:
    """A repository on the hub, or a file in it; `str` is what a user types for it.

    `repo` is "org/name". `revision` is a branch, a tag or a commit, None the default branch. `file` is a file in the
    repository, or a part of the name of one; None where the name doesn't say.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    kind: ClassVar[Kind] = "model"

    @property
    def path(self) -> str:
        """Its page on the hub, behind the hub's address."""
        return self.repo

    def __str__(self) -> str:
        revision, file = f"@{self.revision}" if self.revision else "", f":{self.file}" if self.file else ""
        return f"{self.path}{revision}{file}"


@dataclass(frozen=True)
class ModelName(RepositoryName):
    """A model on the hub; `file` is a GGUF file, or a part of the name of one, such as Q2_0."""


@dataclass(frozen=True)
class DatasetName(RepositoryName):
    """A dataset on the hub; `file` is a file with text, or a part of the name of one."""

    kind: ClassVar[Kind] = "dataset"

    @property
    def path(self) -> str:
        return f"{_DATASETS}{self.repo}"


_Name = TypeVar("_Name", bound=RepositoryName)


def parse(text: str | os.PathLike[str]) -> ModelName | None:
    """Return the model that a text names, None for a local path; raise HubError for what can be neither.

    What exists is a local path, and so is what looks like one: ./x, /x, C:\\x, a name without a slash or with several,
    one that ends in .gguf. Addresses on the hub may have a page's path behind the name.

    >>> parse("org/name@v1.0:model-Q2_0.gguf")
    ModelName(repo='org/name', revision='v1.0', file='model-Q2_0.gguf')
    >>> parse("https://huggingface.co/org/name/tree/main")
    ModelName(repo='org/name', revision='main', file=None)
    >>> parse("models/name.gguf") is None
    True
    """
    text = os.fspath(text)
    if _exists(text):
        return None
    if (address := _behind_site(text)) is not None:
        name = _matched(ModelName, _NAME, address) or _matched(ModelName, _PAGE, address)
        if name is None:
            raise HubError(f"{text:.200} isn't the address of a model on the hub; expected {FORMS}")
        return name
    name = _matched(ModelName, _NAME, text)
    if name is None and _is_too_long(text):
        raise HubError(f"{text:.100}… is too long for a path, and names no model; expected a path, {FORMS}")
    return None if name is None or (name.file is None and text.lower().endswith(_FILES)) else name


def parse_dataset(text: str) -> DatasetName | None:
    """Return the dataset that a text names, None for a local path; raise HubError for another address on the hub.

    What exists is a local path, and so is what doesn't begin with datasets/, or with the hub's address.

    >>> parse_dataset("datasets/org/name@v1.0:data/train.jsonl")
    DatasetName(repo='org/name', revision='v1.0', file='data/train.jsonl')
    >>> parse_dataset("org/name") is None
    True
    """
    if _exists(text):
        return None
    address = _behind_site(text)
    begins, _, rest = (text if address is None else address).partition("/")
    name = None
    if f"{begins}/" == _DATASETS:
        name = _matched(DatasetName, _NAME, rest) or _matched(DatasetName, _DATASET_PAGE, rest)
    if name is None and address is not None:
        raise HubError(f"{text:.200} isn't the address of a dataset on the hub; expected {DATASET_FORMS}")
    return None if name is None or (name.file is None and text.lower().endswith(_TEXTS)) else name


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def _is_too_long(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:
        pass
    return False


def _behind_site(text: str) -> str | None:
    """Return what follows the hub's address, without a query; None where the text doesn't begin with one."""
    own = os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") + "/"
    if own != "/" and text.startswith(own):
        rest = text.removeprefix(own)
    elif match := _SITE.match(text):
        rest = text[match.end() :]
    else:
        return None
    return re.split(r"[?#]", rest)[0].rstrip("/")


def _matched(kind: type[_Name], pattern: re.Pattern[str], text: str) -> _Name | None:
    match = pattern.fullmatch(text)
    if match is None or any(wrong in match["repo"] for wrong in ("--", "..")) or match["repo"].endswith(".git"):
        return None
    revision, file = match["revision"], match["file"]
    if pattern is not _NAME:  # where a slash in the name of a branch is written as %2F
        revision, file = unquote(revision), file and unquote(file)
    return kind(match["repo"], revision, file)
