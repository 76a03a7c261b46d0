"""`tritgguf pull`: get a model, or its newest revision, into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from tritgguf.runtime.cli import model_options, options
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.progress_bar import show_progress

Again = Annotated[bool, typer.Option("--force", help="Convert it again, even if it didn't change.")]


def pull(
    model: model_options.ModelName,
    revision: options.Revision = None,
    type: model_options.TypeName = None,
    target: model_options.Target = None,
    fallback: options.Fallback = None,
    allow_lossy: options.AllowLossy = False,
    max_bits: model_options.MaxBits = None,
    smallest: options.Smallest = False,
    force: Again = False,
    threads: options.Threads = None,
) -> None:
    """Get a model into the cache and convert it for this machine, or bring it up to date."""
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.obtain import Obtainer

    form = model_options.wanted_form(type, target, fallback, allow_lossy, max_bits, smallest)
    source = model_options.wanted_source(model, revision)
    with model_options.reports_interruption(source.name), show_progress(False) as progress:
        obtainer = Obtainer(Cache(), model_options.note, progress, threads)
        entry, changed = obtainer.update(source, form, force=force)
    print(entry.record.summary if changed else f"{entry.record.summary}; up to date")


COMMAND = Command("pull", pull, rank=11)
