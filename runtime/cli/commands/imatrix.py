"""`tritgguf imatrix`: an importance matrix of a model on a text, for `convert --imatrix` and llama-quantize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli import options, placing
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.cli.runnable_model import runnable
from tritgguf.runtime.cli.text_argument import local_text


def imatrix(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="GGUF file, or a model as `tritgguf run` takes it.")],
    text: Annotated[
        str,
        typer.Option(
            metavar="FILE|DATASET",
            help="UTF-8 text to calibrate on, or a dataset on Hugging Face, datasets/org/name; never one that a model "
            "is measured on.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="GGUF file to write.")] = Path("imatrix.gguf"),
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
    """Measure how large the inputs of each linear layer are on a text, in llama-imatrix's format."""
    from tritgguf.converter.core.whole_files import require_writable  # not at the top: the help is fast
    from tritgguf.converter.gguf_io.imatrix import write_imatrix
    from tritgguf.runtime.cli.native_library import prepare_native_library

    require_writable(out, [out], force)
    placement = placing.wanted(gpu_layers, main_gpu, tensor_split, rpc)
    prepare_native_library()
    words = local_text(text, plain=True, json_output=json_output)
    file = runnable(model, json_output=json_output).path
    placing.note_limits(placement, [file])
    from tritgguf.runtime.measure.imatrix import compute_imatrix

    with reports_interruption(out), show_progress(json_output, unit="tokens") as progress:
        found = compute_imatrix(
            file,
            words,
            out,
            n_ctx=ctx,
            n_chunks=chunks,
            threads=threads,
            placement=placement,
            progress=progress,
        )
        write_imatrix(found, force=force)
    n_bytes, n_layers = out.stat().st_size, len(found.entries)
    if json_output:
        print(json.dumps({"out": str(out), "bytes": n_bytes, "layers": n_layers, "chunks": found.n_chunks}))
        return
    of_chunks = "1 chunk" if found.n_chunks == 1 else f"{found.n_chunks} chunks"
    print(f"{out}: {format_size(n_bytes)}, {n_layers} layers' inputs on {of_chunks} of {found.chunk_size} tokens.")


COMMAND = Command("imatrix", imatrix, rank=9)
