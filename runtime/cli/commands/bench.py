"""`tritgguf bench`: tokens per second of GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli import options, placing, verbosity
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.cli.runnable_model import runnable

if TYPE_CHECKING:
    from tritgguf.runtime.engine.placement import Placement
    from tritgguf.runtime.measure.bench import Bench
    from tritgguf.runtime.measure.heads import Heads

WIDTH = 120
MAX_NUMBER = 1 << 20
BUSY = 0.5  # cores that other programs keep busy: with more, the rates are lower than the machine's


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=f"{options.RUNNABLE}; they take turns.")],
    prompt_tokens: Annotated[
        str, typer.Option(metavar="N,…", help="Lengths of prompts, such as 128,512; 0 measures none.")
    ] = "512",
    generate: Annotated[
        str, typer.Option(metavar="N,…", help="How many tokens to generate, such as 64,128; 0 measures none.")
    ] = "128",
    threads: Annotated[
        str | None,
        typer.Option(metavar="N,…", help="Numbers of threads, such as 1,2 (default: a short trial finds the fastest)."),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,…", help="How many tokens of a prompt to evaluate at once, such as 128,512.")
    ] = "512",
    repeat: Annotated[int, typer.Option(min=1, help="How often to run each test.")] = 5,
    gpu_layers: placing.GpuLayers = None,
    main_gpu: placing.MainGpu = None,
    tensor_split: placing.TensorSplit = None,
    rpc: placing.Rpc = None,
    heads: Annotated[
        bool,
        typer.Option(
            "--heads",
            help="Measure one file with its output layer as F16, Q8_0 and Q6_K: speed of generation, and KL divergence "
            "from F16.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw a picture (needs the extra bench).")
    ] = None,
    force: options.Force = False,
    json_output: options.JsonOutput = False,
) -> None:
    """Measure prompt (pp) and generation (tg) tokens per second, as llama-bench does; files take turns."""
    lengths = _numbers(prompt_tokens, "--prompt-tokens", least=0), _numbers(generate, "--generate", least=0)
    n_threads = _numbers(threads, "--threads", most=512) if threads is not None else None
    batches = _numbers(batch, "--batch")
    if not any(lengths):
        raise typer.BadParameter("there is nothing to measure", param_hint="--prompt-tokens and --generate")
    placement = placing.wanted(gpu_layers, main_gpu, tensor_split, rpc)
    if heads:
        if plot is not None:
            raise typer.BadParameter("there is no picture of --heads: leave it out", param_hint="--plot")
        _bench_heads(models, lengths[1], n_threads, repeat, placement, json_output=json_output)
        return
    from tritgguf.converter.core.whole_files import require_writable, write_whole  # not at the top: the help is fast
    from tritgguf.runtime.cli.native_library import prepare_native_library
    from tritgguf.runtime.measure import bench_plot

    if plot is not None:  # before the minutes of work
        bench_plot.require_matplotlib()
        require_writable(plot, [plot], force)
    prepare_native_library()
    runnables = [runnable(model, json_output=json_output) for model in models]
    placing.note_limits(placement, [model.path for model in runnables])
    from tritgguf.runtime.measure.bench import bench as measure

    with show_progress(json_output, unit="tokens") as progress:
        found = measure(
            [model.path for model in runnables],
            prompt_tokens=lengths[0],
            generate=lengths[1],
            threads=n_threads,
            batches=batches,
            repeat=repeat,
            placement=placement,
            progress=progress,
        )
    if json_output:
        print(json.dumps(found.as_json()))
    else:
        _print_table(found)
    _note_if_busy(found.others)
    if plot is not None:
        write_whole(plot, bench_plot.plot(found), force=force)


def _bench_heads(
    models: list[str],
    generate: list[int],
    threads: list[int] | None,
    repeat: int,
    placement: Placement,
    *,
    json_output: bool,
) -> None:
    for numbers, option in ((models, "MODEL"), (generate, "--generate"), (threads or [1], "--threads")):
        if len(numbers) != 1:
            raise typer.BadParameter("--heads measures one file in one way: give one", param_hint=option)
    from tritgguf.runtime.cli.native_library import prepare_native_library  # not at the top: the help is fast

    prepare_native_library()
    path = runnable(models[0], json_output=json_output).path
    placing.note_limits(placement, [path])
    from tritgguf.runtime.measure.heads import measure_heads

    with show_progress(json_output, unit="tokens") as progress:
        found = measure_heads(
            path,
            generate=generate[0],
            threads=threads[0] if threads else None,
            repeat=repeat,
            placement=placement,
            progress=progress,
        )
    if json_output:
        print(json.dumps(found.as_json()))
    else:
        _print_heads(found)
    _note_if_busy(found.others)


def _note_if_busy(others: float | None) -> None:
    if others is not None and others > BUSY:
        verbosity.note(f"other programs kept {others:.1f} cores busy meanwhile, so the rates are too low")


def _numbers(text: str, option: str, *, least: int = 1, most: int = MAX_NUMBER) -> list[int]:
    """Return the numbers of a list such as 1,2 in their order, each once, without a 0."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(least <= number <= most for number in numbers):
        raise typer.BadParameter(
            f"{text!r} isn't a list of numbers from {least} to {most}, such as 1,2", param_hint=option
        )
    return [number for number in dict.fromkeys(numbers) if number]


def _print_table(found: Bench) -> None:
    from rich.markup import escape
    from rich.table import Table

    from tritgguf.runtime.cli.tables import TableConsole

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("file")
    for title in ("size", "test", "threads", "batch", "tokens/s", "min to max"):
        table.add_column(title, justify="right", no_wrap=True)
    for series in found.series:
        low, high = min(series.rates), max(series.rates)
        table.add_row(
            escape(series.path.name),
            format_size(series.size.file_bytes),
            series.test.name,
            str(series.threads),
            "" if series.test.generates else str(series.batch),
            f"{series.median:.2f}",
            f"{low:.2f} to {high:.2f}",
        )
    TableConsole(width=WIDTH, highlight=False).print(table)


def _print_heads(found: Heads) -> None:
    from rich.table import Table

    from tritgguf.runtime.cli.tables import TableConsole

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(found.tensor)
    for title in ("size", "threads", "tokens/s", "min to max", "to F16", "KLD from F16"):
        table.add_column(title, justify="right", no_wrap=True)
    base = found.heads[0].median
    for head in found.heads:
        table.add_row(
            f"{head.type} (its own)" if head.is_own else head.type,
            format_size(head.file_bytes),
            str(found.threads),
            f"{head.median:.2f}",
            f"{min(head.rates):.2f} to {max(head.rates):.2f}",
            f"{head.median / base:.2f}",
            "" if head.kld is None else f"{head.kld[0]:.5f} ± {head.kld[1]:.5f}",
        )
    TableConsole(width=WIDTH, highlight=False).print(table)
    print(found.advice)


COMMAND = Command("bench", bench, rank=7)
