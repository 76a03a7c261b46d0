"""`tritgguf doctor`: what runs on this computer, what is slow, and what is broken with the remedy."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.cli import verbosity
from tritgguf.runtime.cli.command import Command

if TYPE_CHECKING:
    from rich.table import Table

    from tritgguf.runtime.measure.doctor.report import Report
    from tritgguf.runtime.measure.doctor.trial import OnTest

WIDTH = 100
Again = Annotated[
    bool, typer.Option("--again", help="Test the products again; otherwise once per build and processor.")
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def doctor(again: Again = False, json_output: JsonOutput = False) -> None:
    """Check what runs here: versions, processor, every tensor type's products, Ollama and the hub."""
    from tritgguf.runtime.measure.doctor.report import examine  # imported here to keep --help fast

    with _status(shown=not json_output) as on_test:
        report = examine(again=again, on_test=on_test)
    if json_output:
        print(json.dumps(report.as_json()))
    else:
        _print(report)
    if report.problems:
        things = "1 thing is" if len(report.problems) == 1 else f"{len(report.problems)} things are"
        raise EngineError(f"{things} broken here: {'; '.join(report.problems)}")


@contextlib.contextmanager
def _status(*, shown: bool) -> Iterator[OnTest | None]:
    """Yield what shows, on a terminal or with -v, which product is tested."""
    if verbosity.is_verbose():
        yield lambda what: verbosity.detail(f"testing {what}")
        return
    if not (shown and not verbosity.is_quiet() and sys.stderr.isatty()):
        yield None
        return
    from tritgguf.runtime.cli.tables import TableConsole  # imported here to keep --help fast

    with TableConsole(stderr=True).status("testing llama.cpp") as status:
        yield lambda what: status.update(f"testing {what}")


def _print(report: Report) -> None:
    from tritgguf.runtime.cli.tables import TableConsole  # imported here to keep --help fast

    for title, text in _facts(report):
        print(f"{title + ':':12} {text}")
    if report.findings.products:
        print()
        TableConsole(width=WIDTH, highlight=False).print(_table(report))
        day = report.findings.tested.replace("T", " ")[:16]
        print(f"10⁹ products per second; the CPU's on one core. Compared with numpy on {day}; --again does so now.")
    for note in report.notes:
        verbosity.note(note)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    found, gpus = report.findings, [device for device in report.findings.devices if device.kind == "gpu"]
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    for cpu in (device for device in found.devices if device.kind == "cpu"):
        yield (
            "processor",
            f"{cpu.description}; {report.instructions.n_logical} logical cores, {found.n_threads} threads",
        )
    if found.problem is None:
        yield "llama.cpp", f"uses {' '.join(report.instructions.used) or found.system_info}"
        yield "CPU kernels", found.cpu_kernels
    yield "GPU", "; ".join(f"{gpu.name}, {gpu.description}, {format_size(gpu.total_bytes)}" for gpu in gpus) or "none"
    yield "memory", _memory(report)
    yield "Ollama", report.ollama.line
    yield "hub", report.hub.line


def _memory(report: Report) -> str:
    sizes = [(report.memory_bytes, "in all"), (report.free_memory_bytes, "free, with swap")]
    return ", ".join(f"{format_size(size)} {what}" for size, what in sizes if size is not None) or "unknown"


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table("type", "device", "products", box=None, pad_edge=False)
    for title in ("one token", "32 tokens"):
        table.add_column(title, justify="right")
    for product in report.findings.products:
        rates = [f"{rate:.1f}" for rate in product.rates or ()]
        state = {"elsewhere": "on the CPU instead"}.get(product.state, product.state)
        table.add_row(product.type, product.device, state, *rates)
    return table


COMMAND = Command("doctor", doctor, rank=9)
