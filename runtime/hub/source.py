"""What a user calls a model by: a local folder or GGUF file, a name on the hub, or a short name of the catalogue."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.errors import CacheError, SourceError
from tritgguf.runtime.hub.cache import Cache, Entry
from tritgguf.runtime.hub.catalogue import catalogue
from tritgguf.runtime.hub.names import ModelName, parse
from tritgguf.runtime.hub.record import Origin, SourceFile, readable_name

N_SUGGESTIONS = 3


@dataclass(frozen=True)
class Source:
    """Where a model comes from: `hub`, or else the local `path`.

    `name` is what the cache calls it, `text` what the user did.
    """

    text: str
    name: str
    path: Path | None = None
    hub: ModelName | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it is a local path that doesn't exist (any more)."""
        # Not Path.exists(), which raises OSError for a name that no file can have.
        return self.path is not None and not os.path.exists(self.path)  # noqa: PTH110


@dataclass(frozen=True)
class Located:
    """A model's files on this disk, and what they are."""

    path: Path
    origin: Origin


def named_source(text: str) -> Source:
    """Return what a text names; a file or folder that exists comes before a short name of the catalogue.

    Raises HubError where it begins as a hub's address does and isn't one, SourceError for an empty text.
    """
    if not text.strip():
        raise SourceError("no model is named; give a folder, a GGUF file, a name on the hub or one of the catalogue")
    known = catalogue().get(text.lower())
    hub = parse(text if known is None or Path(text).exists() else known.model)
    if hub is not None:
        return Source(text, str(hub), hub=hub)
    # Not Path's methods: resolve() follows links to a hub's cache, expanduser() raises RuntimeError for unknown users.
    path = Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111
    return Source(text, str(path), path=path)


def locate(source: Source, progress: Progress | None) -> Located:
    """Return the model's files, fetched if they aren't here; raise SourceError or HubError where there are none."""
    if source.hub is None:
        assert source.path is not None
        return Located(source.path, local_origin(source.path))
    from tritgguf.runtime.hub.download import download  # not at the top: local models need no client of the hub

    found = download(source.hub, on_progress=progress)
    file = found.path.name if found.path.is_file() else None
    return Located(found.path, Origin("hub", found.repo, found.commit, file))


def local_origin(path: Path) -> Origin:
    """Return what a local model is made of now: the GGUF file with its parts, or the files of the folder.

    GGUF files in a folder with a model aren't part of it. Raises SourceError where there is no such file.
    """
    from tritgguf.converter.gguf_io.parts import parts_named  # not at the top, with gguf: `list` needn't wait for it

    try:
        files = parts_named(path) if path.is_file() else sorted(path.iterdir())
        described = [
            SourceFile(file.name, found.st_size, found.st_mtime_ns)
            for file in files
            if stat.S_ISREG((found := file.stat()).st_mode)
            if path.is_file() or not (file.name.startswith(".") or file.suffix == ".gguf")
        ]
    except OSError as error:
        raise SourceError(f"{error.filename or path} can't be read: {error.strerror}") from error
    return Origin("local", str(path), files=tuple(described))


def not_found(text: str, others: Iterable[str]) -> CacheError:
    """Return the error for a name that nothing here has, with the nearest of `others`."""
    names = list(dict.fromkeys([*others, *catalogue()]))
    short = {name.replace("\\", "/").rstrip("/").split("/")[-1].lower(): name for name in reversed(names)}
    short |= {name.lower(): name for name in names}
    near = difflib.get_close_matches(text.lower(), short, n=N_SUGGESTIONS, cutoff=0.5)
    suggested = list(dict.fromkeys(short[name] for name in near))
    hint = (
        f"did you mean {' or '.join(suggested)}?" if suggested else "`tritgguf list --known` names models to begin with"
    )
    return CacheError(f"{text:.200} is no model in the cache, no file or folder here, and no known name; {hint}")


def cached(text: str, cache: Cache, type_name: str | None = None) -> list[Entry]:
    """Return the model in the cache that a text names, in each of its forms: by its name, or by the last part of it.

    `type_name` leaves only forms whose layers are of that type. Raises CacheError if there is none, or if several
    models have such a name.
    """
    entries = cache.entries()
    name, last = named_source(text).name, text.lower().removesuffix(".gguf")
    found = [entry for entry in entries if entry.record.name == name]
    found = found or [entry for entry in entries if readable_name(entry.record.name).lower() == last]
    if not found:
        raise not_found(text, (entry.record.name for entry in entries))
    names = sorted({entry.record.name for entry in found})
    if len(names) > 1:
        raise CacheError(f"{text} is the last part of {len(names)} names: give one of {', '.join(names)}")
    if type_name is None:
        return found
    typed = [entry for entry in found if entry.record.type == type_name.lower()]
    if not typed:
        types = ", ".join(sorted({entry.record.type for entry in found}))
        raise CacheError(f"{text} is in the cache as {types}, not as {type_name}")
    return typed
