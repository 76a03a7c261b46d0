"""`tritgguf rm`: remove models from the cache."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli import model_options
from tritgguf.runtime.cli.command import Command

Models = Annotated[
    list[str], typer.Argument(show_default=False, help="Models in the cache, as `tritgguf list` names them.")
]


def rm(models: Models, type: model_options.CachedType = None) -> None:
    """Remove models from the cache, and say what that freed."""
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.description import download_hint
    from tritgguf.runtime.hub.source import cached

    cache = Cache()
    # Every name is looked up first, so that a wrong one removes nothing.
    entries = {entry.folder: entry for model in models for entry in cached(model, cache, type)}
    for entry in entries.values():
        record = entry.record
        cache.remove(entry, partial(model_options.note, f"waiting for another tritgguf that is getting {record.name}"))
        what = f"Removed {record.name} ({record.type})"
        freed = f"{format_size(record.n_bytes)} freed"
        kept = f"nothing freed, {entry.paths[0]} stays where it is"
        print(f"{what}: {freed if record.converted else kept}{download_hint(record)}")


COMMAND = Command("rm", rm, rank=13)
