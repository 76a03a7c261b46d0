"""A text as it is named on the command line: a file, or a dataset on the hub, of which what is needed is fetched."""

from __future__ import annotations

from pathlib import Path

from tritgguf.runtime.cli import verbosity
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.hub.names import parse_dataset


def local_text(text: str, *, plain: bool = False, json_output: bool = False) -> Path:
    """Return where the text is on this disk, once it is fetched; raise HubError or SourceError where it can't be.

    `plain` makes one plain text of a dataset's.
    """
    name = parse_dataset(text)
    if name is None:
        return Path(text)
    from tritgguf.runtime.hub.dataset import dataset_text, plain_text  # imported here to keep --help fast

    with show_progress(json_output) as progress:
        found = dataset_text(name, on_progress=progress)
    if not json_output:
        verbosity.note(str(found))
    return plain_text(found) if plain else found.path
