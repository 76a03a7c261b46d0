"""`tritgguf list`: the models in the cache, or those that are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli.command import Command

if TYPE_CHECKING:
    from tritgguf.runtime.hub.cache import Entry

WIDTH = 200  # where no terminal tells

Known = Annotated[bool, typer.Option("--known", help="List ternary models that are known, and what to type for each.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON array.")]


def list_models(known: Known = False, json_output: Json = False) -> None:
    """List the models in the cache, or with --known those that can be had."""
    if known:
        _list_known(json_output)
        return
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.description import described, short_origin

    cache = Cache()
    entries = cache.entries()
    if json_output:
        print(json.dumps([described(entry) for entry in entries]))
        return
    if not entries:
        print(f"No models in {cache.folder} yet; `tritgguf run MODEL` gets one, `tritgguf list --known` names some.")
        return
    rows = [(*_cells(entry), short_origin(entry.record)) for entry in entries]
    _print_table(("name", "type", "size", "exact", "used", "from"), rows)
    own = sum(entry.record.n_bytes for entry in entries if entry.record.converted)
    print(f"{format_size(own)} in {cache.folder}")


def _cells(entry: Entry) -> tuple[str, ...]:
    record, used = entry.record, entry.used
    problem = entry.damage()
    exact = f"damaged: {problem}" if problem else record.exactness
    return record.name, record.type, format_size(record.n_bytes), exact, f"{used:%Y-%m-%d %H:%M}" if used else "never"


def _list_known(json_output: bool) -> None:
    from tritgguf.runtime.hub.catalogue import catalogue

    models = catalogue().values()
    if json_output:
        print(json.dumps([model.as_json() for model in models]))
        return
    rows = [
        (
            model.command,
            model.parameters,
            "" if model.download_bytes is None else format_size(model.download_bytes),
            model.becomes,
            model.licence or "",
            ", ".join(model.runs_on),
            "chat" if model.chat else "base",
            model.by,
        )
        for model in models
    ]
    _print_table(("what to type", "values", "download", "layers", "licence", "runs on", "kind", "by"), rows)
    print("An empty cell isn't known. x86 means CPUs without tritgguf's own kernels. `tritgguf show NAME` tells more.")


def _print_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.markup import escape  # not at the top: the help needn't wait for it
    from rich.table import Table

    from tritgguf.runtime.cli.tables import TableConsole

    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    TableConsole(width=WIDTH, highlight=False).print(table)


COMMAND = Command("list", list_models, rank=10)
