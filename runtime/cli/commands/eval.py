"""`tritgguf eval`: perplexity of GGUF files, and how far they are from a base, by llama-perplexity's protocol."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli import options, placing
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.cli.runnable_model import runnable

if TYPE_CHECKING:
    from rich.table import Table

    from tritgguf.runtime.measure.evaluation import Evaluated, Evaluation

WIDTH = 170  # of figures with their errors side by side


def evaluate(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=f"{options.RUNNABLE}.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to predict (default: one that comes with tritgguf).")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="Compare the models' predictions with those of this one."),
    ] = None,
    base_logits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The base's log-probabilities in llama-perplexity's format: written with --against, else read.",
        ),
    ] = None,
    ctx: Annotated[int | None, typer.Option(min=4, help="Tokens of a chunk (default: 512).")] = None,
    chunks: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first chunks of the text.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=512, help="Number of threads (default: one per physical performance core).")
    ] = None,
    gpu_layers: placing.GpuLayers = None,
    main_gpu: placing.MainGpu = None,
    tensor_split: placing.TensorSplit = None,
    rpc: placing.Rpc = None,
    force: options.Force = False,
    json_output: options.JsonOutput = False,
) -> None:
    """Measure perplexity on a text and the KL divergence from a base, by llama-perplexity's protocol."""
    if not models and not (against and base_logits):
        raise typer.BadParameter("name a model, or --against and --base-logits to write the base's", param_hint="MODEL")
    from tritgguf.converter.core.whole_files import require_writable  # not at the top: the help is fast
    from tritgguf.runtime.cli.native_library import prepare_native_library

    writes = base_logits if against else None
    if writes:  # before models are fetched
        require_writable(writes, [writes], force)
    placement = placing.wanted(gpu_layers, main_gpu, tensor_split, rpc)
    prepare_native_library()
    files = [runnable(model, json_output=json_output).path for model in models or []]
    base = runnable(against, json_output=json_output).path if against else None
    placing.note_limits(placement, [*files, *([base] if base else [])])
    from tritgguf.runtime.measure.evaluation import evaluate as measure

    reports = reports_interruption(writes) if writes else contextlib.nullcontext()
    with reports, show_progress(json_output, unit="tokens") as progress:
        found = measure(
            files,
            text=text,
            against=base,
            base_logits=base_logits,
            force=force,
            n_ctx=ctx,
            n_chunks=chunks,
            threads=threads,
            placement=placement,
            progress=progress,
        )
    if json_output:
        print(json.dumps(found.as_json()))
    else:
        _print(found)


def _print(found: Evaluation) -> None:
    from tritgguf.runtime.cli.tables import TableConsole

    everything = [*found.files, *([found.base] if found.base else [])]
    console = TableConsole(width=WIDTH, highlight=False)
    console.print(_table(found))
    scored = sorted({(file.figures.n_scored, file.n_chunks) for file in everything})
    for n_scored, n_chunks in scored:
        chunks = "1 chunk" if n_chunks == 1 else f"{n_chunks} chunks"
        print(f"{n_scored} tokens scored in {chunks} of {found.n_ctx}.")


def _table(found: Evaluation) -> Table:
    from rich.markup import escape
    from rich.table import Table

    compared = any(file.figures.divergence for file in found.files)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("file")
    titles = ["size", "bits", "linear", "perplexity"]
    titles += ["KLD", "median", "99 %", "same top-1 %", "RMS Δp %", "mean Δp %"] if compared else []
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for file in found.files:
        table.add_row(escape(file.path.name), *_cells(file))
    if found.base:
        table.add_row(f"{escape(found.base.path.name)} (base)", *_cells(found.base))
    return table


def _cells(file: Evaluated) -> list[str]:
    size, figures = file.size, file.figures
    linear = "" if size.linear_bits is None else f"{size.linear_bits:.2f}"
    cells = [format_size(size.file_bytes), f"{size.bits_per_weight:.2f}", linear]
    cells.append(f"{figures.ppl:.4f} ± {figures.ppl_error:.4f}")
    if (other := figures.divergence) is not None:
        cells += [
            f"{other.kld_mean:.5f} ± {other.kld_error:.5f}",
            f"{other.kld_median:.5f}",
            f"{other.kld_99:.5f}",
            f"{100 * other.same_top1:.2f} ± {100 * other.same_top1_error:.2f}",
            f"{100 * other.delta_p_rms:.2f} ± {100 * other.delta_p_rms_error:.2f}",
            f"{100 * other.delta_p_mean:+.2f}",
        ]
    return cells


COMMAND = Command("eval", evaluate, rank=8)
