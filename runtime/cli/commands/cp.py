"""`tritgguf cp`: copy a model's GGUF file out of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import CacheError
from tritgguf.runtime.cli import model_options, options
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.progress_bar import show_progress

Out = Annotated[Path, typer.Argument(show_default=False, help="GGUF file to write.")]


def cp(
    model: model_options.CachedName,
    out: Out,
    type: model_options.CachedType = None,
    force: options.Force = False,
) -> None:
    """Copy a model's GGUF file out of the cache, compared with its digest on the way."""
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.copy_out import copy_out
    from tritgguf.runtime.hub.source import cached

    entries = cached(model, Cache(), type)
    if len(entries) > 1:
        kinds = " or ".join(dict.fromkeys(f"--type {entry.record.type}" for entry in entries))
        raise CacheError(f"{model} is in the cache in {len(entries)} forms: add {kinds}")
    with reports_interruption(out), show_progress(False) as progress:
        paths = copy_out(entries[0], out, force=force, progress=progress)
    print(f"{paths[0]}: {format_size(entries[0].record.n_bytes)}")


COMMAND = Command("cp", cp, rank=14)
