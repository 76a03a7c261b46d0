"""What the cache knows about a model: where it came from, what was asked for, and its files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tritgguf
from tritgguf.converter.core.sizes import format_size

FORMAT = 1  # of the record; a record of another format counts as none, so the model is made again
LAYERS = "blk."  # how the names of layers' tensors begin


@dataclass(frozen=True)
class Form:
    """What was asked of the file: the options of `convert` that decide about its types.

    `type` None is "auto", but a GGUF file that runs here stays as it is. `target` is where it runs. With `smallest`
    "auto" doesn't ask which type is fastest here.
    """

    type: str | None = None
    target: str = "cpu"
    fallback: str | None = None
    allow_lossy: bool = False
    max_bits: float | None = None
    smallest: bool = False

    @property
    def by_default(self) -> bool:
        """Whether nothing but the target was asked for."""
        return self == Form(target=self.target)


@dataclass(frozen=True)
class SourceFile:
    """A local file that was read, and what tells whether it changed since."""

    name: str
    n_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Origin:
    """What a model was made from: a commit of a repository, or local files as they were then.

    `place` is the repository or the absolute path; `file` is the GGUF file of the repository, if it was one.
    """

    kind: Literal["hub", "local"]
    place: str
    commit: str | None = None
    file: str | None = None
    files: tuple[SourceFile, ...] = ()

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {name: value for name, value in values.items() if value not in (None, (), [])}


@dataclass(frozen=True)
class StoredFile:
    """A file of the model: a name in the entry's folder, or an absolute path if it lies elsewhere.

    `sha256` is None where it was never computed.
    """

    path: str
    n_bytes: int
    mtime_ns: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: Path, name: str, sha256: str | None = None) -> StoredFile:
        """Describe the file at `path`; raise OSError where there is none."""
        stat = path.stat()
        return cls(name, stat.st_size, stat.st_mtime_ns, sha256)


@dataclass(frozen=True)
class Record:
    """A model in the cache.

    `name` is what the user calls it. `type` holds most of the layers' bytes, `types` counts the tensors of each. Of
    `n_tensors`, `n_inexact` hold rounded values; it is None for a file that is used as it is. `made` is an ISO date in
    UTC, `version` the program's.
    """

    name: str
    form: Form
    origin: Origin
    files: tuple[StoredFile, ...]
    type: str
    types: Mapping[str, int]
    n_inexact: int | None
    notes: tuple[str, ...]
    made: str
    version: str

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    @property
    def converted(self) -> bool:
        """Whether the cache holds the file itself, and not where it lies."""
        return self.n_inexact is not None

    @property
    def exactness(self) -> str:
        """Return in words whether the file holds the source's values."""
        if self.n_inexact is None:
            return "as it is"
        n_tensors = sum(self.types.values())
        return f"{self.n_inexact} of {n_tensors} tensors rounded" if self.n_inexact else "exact"

    @property
    def summary(self) -> str:
        """Return the model in one line."""
        return f"{self.name}: {self.type}, {format_size(self.n_bytes)}, {self.exactness}"

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"format": FORMAT, **asdict(self), "origin": self.origin.as_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Return the record; raise ValueError, KeyError or TypeError where it isn't one of this format."""
        if values.get("format") != FORMAT:
            raise ValueError("another format")
        origin = values["origin"]
        n_inexact = values["n_inexact"]
        return cls(
            name=str(values["name"]),
            form=Form(**values["form"]),
            origin=Origin(**{**origin, "files": tuple(SourceFile(**file) for file in origin.get("files", ()))}),
            files=tuple(StoredFile(**file) for file in values["files"]),
            type=str(values["type"]),
            types={str(name): int(count) for name, count in values["types"].items()},
            n_inexact=None if n_inexact is None else int(n_inexact),
            notes=tuple(map(str, values["notes"])),
            made=str(values["made"]),
            version=str(values["version"]),
        )


class TensorFact(NamedTuple):
    """A tensor of a file; `exact` is None where nothing was converted."""

    name: str
    type: str
    n_bytes: int
    exact: bool | None = None


def new_record(
    name: str,
    form: Form,
    origin: Origin,
    files: tuple[StoredFile, ...],
    tensors: Iterable[TensorFact],
    notes: Sequence[str] = (),
) -> Record:
    """Return the record of a model that is made now."""
    tensors = list(tensors)
    held: Counter[str] = Counter()
    for tensor in [tensor for tensor in tensors if tensor.name.startswith(LAYERS)] or tensors:
        held[tensor.type] += tensor.n_bytes
    unchanged = all(tensor.exact is None for tensor in tensors)
    return Record(
        name=name,
        form=form,
        origin=origin,
        files=files,
        type=held.most_common(1)[0][0] if held else "none",
        types=dict(Counter(tensor.type for tensor in tensors).most_common()),
        n_inexact=None if unchanged else sum(tensor.exact is False for tensor in tensors),
        notes=tuple(notes),
        made=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        version=tritgguf.__version__,
    )


def readable_name(name: str) -> str:
    """Return the last part of a model's name with nothing in it that file names can't have."""
    last = name.replace("\\", "/").rstrip("/").split("/")[-1].removesuffix(".gguf")
    readable = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in last)
    return readable.strip(".-")[:60] or "model"


def entry_key(name: str, form: Form) -> str:
    """Return the name of the folder for a model in a form: readable, short, and another one for each."""
    asked = {option: value for option, value in asdict(form).items() if option != "smallest" or value}
    digest = hashlib.sha256(json.dumps([name, asked], sort_keys=True).encode()).hexdigest()
    return f"{readable_name(name)}-{digest[:12]}"
