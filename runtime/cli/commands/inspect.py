"""`tritgguf inspect`: show a model's tensors, the grids of their weights, and the types that store them exactly."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli import options, verbosity
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.model_argument import headers_of_model
from tritgguf.runtime.cli.progress_bar import show_progress

if TYPE_CHECKING:
    from rich.table import Table

    from tritgguf.converter.inspection.inspection import Inspection, Size
    from tritgguf.converter.inspection.tensor_facts import TensorFacts

WIDTH = 100
NOTES_SHOWN = 5
Against = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="The model that a GGUF file was made from: the report has each tensor's error."),
]
EvalJson = Annotated[
    Path | None,
    typer.Option("--eval", metavar="FILE", help="What eval --json printed about the file: the report has its quality."),
]
_NEAR = "codes exact, scales rounded to fp16"


def inspect(
    model: options.Model,
    revision: options.Revision = None,
    tensors: options.Tensors = False,
    json_output: options.JsonOutput = False,
    html: options.Html = None,
    against: Against = None,
    eval_json: EvalJson = None,
    force: options.Force = False,
    threads: options.Threads = None,
) -> None:
    """Show a model's tensors, which types store them exactly, and each type's file size and platforms.

    Of a model on Hugging Face that wasn't fetched yet, only the headers are read.
    """
    if html is None and (against or eval_json):
        raise typer.BadParameter(
            "it goes into a report: add --html FILE", param_hint="--against" if against else "--eval"
        )
    if html is not None:
        from tritgguf.converter.core.whole_files import require_writable  # imported here to keep --help fast

        require_writable(html, [html], force)
    with (
        reports_interruption(html) if html else contextlib.nullcontext(),
        headers_of_model(model, revision, gguf=True, json_output=json_output) as read,
        show_progress(json_output) as progress,
    ):
        if html is None:
            from tritgguf.converter.inspection.inspection import inspect as look
            from tritgguf.runtime.engine.kernels.install import fast_types

            found = look(read.path, values=read.values, fast_here=fast_types(), threads=threads, progress=progress)
        else:
            from tritgguf.runtime.cli.html_report import report_model  # jinja2 takes time to load

            found = report_model(
                read, html, against=against, eval_json=eval_json, force=force, threads=threads, progress=progress
            )
    if json_output:
        print(json.dumps(found.as_json()))
    else:
        _print(found, every_tensor=tensors)
        if html is not None:
            print(f"report: {html}")


def _print(found: Inspection, *, every_tensor: bool) -> None:
    from rich.markup import escape

    from tritgguf.runtime.cli.tables import TableConsole

    console = TableConsole(width=WIDTH, highlight=False)
    console.print(escape(_headline(found)), soft_wrap=True)
    console.print()
    console.print(_tensor_table(found, every=every_tensor))
    if any(tensor.near_types for tensor in found.tensors):
        errors = [tensor.grid.fp16_error for tensor in found.tensors if tensor.grid]
        console.print(f"≈ {_NEAR}, by up to {max(errors):.0e}", soft_wrap=True)
    if found.sizes:
        console.print()
        console.print(_size_table(found))
    notes = () if verbosity.is_quiet() else found.notes
    for note in notes[:NOTES_SHOWN]:
        print(f"note: {note}")
    if len(notes) > NOTES_SHOWN:
        print(f"note: and {len(found.notes) - NOTES_SHOWN} more; --json lists all")
    if found.refused:
        print(f"can't be converted: {found.refused}")


def _headline(found: Inspection) -> str:
    from tritgguf.converter.model.card_metadata import model_name  # not at the top: the help needn't wait

    architecture = " → ".join(name for name in (found.hf_class, found.architecture) if name) or "unknown architecture"
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    weights = f"{found.n_parameters / 1e6:,.1f} M values in {format_size(found.file_bytes)} ({dtypes})"
    name = found.path.name if found.kind == "gguf" else model_name(found.path)
    line = f"{name}: {found.source or 'unknown format'}, {architecture}, {weights}"
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _tensor_table(found: Inspection, *, every: bool) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from tritgguf.converter.inspection.tensor_facts import MATRICES

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tensors", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for title in ("shape", "stored", "bits", "ternary per", "zeros", "exact in"):
        table.add_column(title)
    groups: dict[tuple[object, ...], list[TensorFacts]] = {}
    for tensor in found.tensors:
        if tensor.role in MATRICES or every:
            name = tensor.name if every else re.sub(r"\d+", "*", tensor.name)
            groups.setdefault((name, tensor.shape, tensor.dtype, _grid(tensor), _types(tensor)), []).append(tensor)
    for (label, *_), alike in groups.items():
        first = alike[0]
        table.add_row(
            escape(str(label).removesuffix(".weight")),
            f"x{len(alike)}" if len(alike) > 1 else "",
            " x ".join(str(size) for size in first.shape),
            first.dtype.split()[0],
            f"{sum(t.bits_per_weight for t in alike) / len(alike):.2f}" if first.n_bytes else "",
            _grid(first),
            _zeros(alike),
            _types(first),
        )
    return table


def _grid(tensor: TensorFacts) -> str:
    grid = tensor.grid
    if grid is None:
        return "no" if tensor.zeros is not None else ""
    levels = "" if grid.levels == 3 else f"{grid.levels} levels per "
    return levels + grid.extent.removesuffix(" columns") + (f", {grid.outliers} outliers" if grid.outliers else "")


def _types(tensor: TensorFacts) -> str:
    """Return the exact ternary types; else the nearly exact ones, marked ≈; else the exact float types."""
    from tritgguf.converter.quant.codec import codecs

    known = codecs()
    ternary = [name for name in tensor.exact_types if known[name].ternary]
    return " ".join(ternary or [f"≈{name}" for name in tensor.near_types] or tensor.exact_types)


def _zeros(alike: list[TensorFacts]) -> str:
    shares = [tensor.zeros for tensor in alike if tensor.zeros is not None]
    if not shares:
        return ""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low[:-1]}-{high}"


def _size_table(found: Inspection) -> Table:
    from rich.table import Table

    from tritgguf.runtime.engine.kernels.install import fast_types

    table = Table("--type", box=None, pad_edge=False)
    table.add_column("file", justify="right")
    for title in ("linear layers exact", "runs on"):
        table.add_column(title)
    fast = fast_types()
    for size in found.sizes.values():
        elsewhere = " in other programs" if size.type in fast else ""
        places = ", ".join(size.runs_on) + "".join(f" (slow on {place}{elsewhere})" for place in size.slow_on)
        table.add_row(size.type, "-" if size.file_bytes is None else format_size(size.file_bytes), _exact(size), places)
    return table


def _exact(size: Size) -> str:
    if size.file_bytes is None:
        return "rows don't fit"
    unfit = f", {size.n_unfit} as f16: rows don't fit" if size.n_unfit else ""
    if size.n_exact is None or size.n_near is None:
        return f"unknown without weights{unfit}"
    if size.exact:
        return "yes"
    if size.n_near == size.n_linear:
        return "≈"
    counts = [f"{size.n_exact}" if size.n_exact else "", f"≈ {size.n_near}" if size.n_near else ""]
    shares = " and ".join(count for count in counts if count)
    return (f"{shares} of {size.n_linear}" if shares else "no") + unfit


COMMAND = Command("inspect", inspect, rank=3)
