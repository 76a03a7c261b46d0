"""`tritgguf show`: what the cache holds of a model, and whether it is still what it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import CacheError
from tritgguf.runtime.cli import model_options
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.progress_bar import show_progress

if TYPE_CHECKING:
    from tritgguf.runtime.hub.cache import Entry
    from tritgguf.runtime.hub.catalogue import KnownModel

Check = Annotated[
    bool, typer.Option("--check", help="Read the files and compare their digests: a second or so per gigabyte.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON array.")]


def show(
    model: model_options.CachedName,
    type: model_options.CachedType = None,
    check: Check = False,
    json_output: Json = False,
) -> None:
    """Show a model in the cache: its source, revision, types, exactness and files."""
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.catalogue import catalogue
    from tritgguf.runtime.hub.description import described
    from tritgguf.runtime.hub.source import cached

    cache, known = Cache(), catalogue().get(model.lower())
    try:
        entries = cached(model, cache, type)
    except CacheError:
        if known is None:
            raise
        _show_known(known, json_output)
        return
    if check:
        with show_progress(False) as progress:
            entries = [cache.checked(entry, progress) for entry in entries]
    if json_output:
        print(json.dumps([described(entry) for entry in entries]))
        return
    for number, entry in enumerate(entries):
        print("\n" * (number > 0) + "\n".join(f"{title:<10} {text}" for title, text in _lines(entry)))
    if check:
        print("Every file has the digest that it had.")


def _lines(entry: Entry) -> list[tuple[str, str]]:
    """Return what to print: titles and texts."""
    from tritgguf.runtime.hub.description import long_origin

    record, used = entry.record, entry.used
    lines = [
        ("name", record.name),
        ("from", long_origin(record)),
        ("tensors", ", ".join(f"{count} {name}" for name, count in record.types.items())),
        ("exact", record.exactness),
        ("for", record.form.target),
        ("made", f"{record.made[:19].replace('T', ' ')} UTC by tritgguf {record.version}"),
        ("used", f"{used:%Y-%m-%d %H:%M}" if used else "never"),
    ]
    for path, file in zip(entry.paths, record.files, strict=True):
        lines.append(("file", f"{path}: {format_size(file.n_bytes)}, SHA-256 {file.sha256 or 'not computed yet'}"))
    lines += [("note", note) for note in record.notes]
    if (damage := entry.damage()) is not None:
        lines.append(("damage", damage))
    return lines


def _show_known(known: KnownModel, json_output: bool) -> None:
    if json_output:
        print(json.dumps([known.as_json()]))
        return
    unknown = "unknown"
    download = unknown if known.download_bytes is None else f"about {format_size(known.download_bytes)}"
    lines = [
        ("name", f"{known.name}: not in the cache; `{known.command}` gets it"),
        ("on the hub", f"{known.model}, by {known.by}"),
        ("values", known.parameters),
        ("download", download),
        ("licence", known.licence or unknown),
        ("stored as", known.stored),
        ("becomes", known.becomes),
        ("runs on", ", ".join(known.runs_on)),
        ("kind", "chat" if known.chat else "base"),
    ]
    lines += [("note", known.note)] if known.note else []
    print("\n".join(f"{title:<10} {text}" for title, text in lines))


COMMAND = Command("show", show, rank=12)
