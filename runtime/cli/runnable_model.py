"""A model to run as `serve`, `bench` and `eval` take it: a GGUF file on this disk, or what `run` takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tritgguf.runtime.cli import model_options
from tritgguf.runtime.cli.progress_bar import show_progress

if TYPE_CHECKING:
    from tritgguf.runtime.hub.cache import Entry
    from tritgguf.runtime.hub.source import Source


class Runnable(NamedTuple):
    """A GGUF file, of a split one the first part, and a short name for it."""

    name: str
    path: Path


def runnable(model: str, *, json_output: bool = False) -> Runnable:
    """Return a GGUF file of this disk as it is, any other model as `run` gets it: it is converted on its first use.

    Raises TritggufError where it can't be had.
    """
    if os.path.isfile(model):  # noqa: PTH113 - Path.is_file() raises for names that no file can have
        return Runnable(_stem(Path(model)), Path(model))
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.obtain import Obtainer

    source = model_options.wanted_source(model, None)
    form = model_options.wanted_form(None, None, None, False, None)
    with model_options.reports_interruption(source.name), show_progress(json_output) as progress:
        entry, made = Obtainer(Cache(), model_options.note, progress).obtain(source, form)
    if made:
        model_options.note(entry.record.summary)
    entry.touch()
    return Runnable(_name(source, entry), entry.paths[0])


def _name(source: Source, entry: Entry) -> str:
    """Return a short name of the catalogue as it was typed, else the file's, or of a conversion its source's."""
    from tritgguf.runtime.hub.record import readable_name

    if source.hub is not None and "/" not in source.text:
        return source.text
    return readable_name(source.name) if entry.record.converted else _stem(entry.paths[0])


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gguf")
