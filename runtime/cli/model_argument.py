"""A model as it is named on the command line: a path, or a name on the hub, of which the files are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritgguf.converter.errors import HubError
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.hub.names import ModelName, parse

if TYPE_CHECKING:
    from tritgguf.runtime.hub.headers import Readable
    from tritgguf.runtime.hub.selection import Prefer


def named_model(text: str, revision: str | None = None) -> ModelName | None:
    """Return the model on the hub that the user means, None for a path; raise HubError for a misplaced --revision."""
    name = parse(text)
    if revision is None or name is None:
        if revision is not None:
            raise HubError(f"--revision is for models on the hub, and {text:.200} is a path: leave it out")
        return name
    if name.revision not in (None, revision):
        raise HubError(f"{name} names a revision, and --revision another one: leave one out")
    return replace(name, revision=revision)


def local_model(
    text: str, revision: str | None = None, *, json_output: bool = False, prefer: Prefer = "checkpoint"
) -> Path:
    """Return where the model is on this disk, once its files are fetched; raise HubError where they can't be."""
    name = named_model(text, revision)
    return Path(text) if name is None else fetched(name, json_output=json_output, prefer=prefer)


def fetched(name: ModelName, *, json_output: bool = False, prefer: Prefer = "checkpoint") -> Path:
    """Fetch a model on the hub, and show how far that is; return where it is on this disk."""
    from tritgguf.runtime.hub.download import download  # imported here to keep --help fast

    with show_progress(json_output) as progress:
        return download(name, on_progress=progress, prefer=prefer).path


@contextmanager
def headers_of_model(
    text: str, revision: str | None = None, *, gguf: bool = False, json_output: bool = False
) -> Iterator[Readable]:
    """Yield the model, or of one on the hub that isn't here its headers, until the block ends.

    `gguf` is that of `headers`.
    """
    from tritgguf.runtime.hub.headers import Readable, headers  # imported here to keep --help fast

    name = named_model(text, revision)
    with ExitStack() as stack:
        if name is None:
            found = Readable(Path(text), True)
        else:
            with show_progress(json_output) as progress:
                found = stack.enter_context(headers(name, gguf=gguf, on_progress=progress))
        yield found
