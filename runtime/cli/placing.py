"""The options that say where a model is computed, and what is told about that before it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.runtime.cli import verbosity

if TYPE_CHECKING:
    from tritgguf.runtime.engine.placement import Placement

GpuLayers = Annotated[
    int | None,
    typer.Option(min=0, help="Number of layers on GPUs and --rpc servers (default: as many as fit)."),
]
MainGpu = Annotated[int | None, typer.Option(min=0, help="The only GPU to use, counted from 0 (default: all).")]
TensorSplit = Annotated[
    str | None,
    typer.Option(
        metavar="N,…", help="Shares of the --rpc servers, then of the GPUs, such as 3,1 (default: by free memory)."
    ),
]
Rpc = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT,…", help="Servers on other machines that take layers: `tritgguf rpc-server`."),
]


def wanted(gpu_layers: int | None, main_gpu: int | None, tensor_split: str | None, rpc: str | None) -> Placement:
    """Return what the options ask for."""
    from tritgguf.runtime.engine.placement import Placement  # not at the top: the help is fast

    servers = tuple(rpc.split(",")) if rpc is not None else ()
    return Placement(gpu_layers, main_gpu, _shares(tensor_split), servers)


def note_limits(wanted: Placement, files: Sequence[Path], cache_tokens: int | None = None) -> None:
    """Note which options do nothing here, and which weights of the files aren't computed on a GPU.

    `cache_tokens` are those of a file's contexts, None as many as usual.
    """
    from tritgguf.runtime.engine import backend, placement  # not at the top: this loads the native library

    has_gpus = backend.supports_gpu()
    if (line := placement.unused(wanted, has_gpus=has_gpus)) is not None:
        verbosity.note(line)
    for path in files if has_gpus else ():
        lines = placement.without_kernel(backend.ggml(), path, placement.used_gpus(backend.ggml(), wanted))
        for line in [*lines, *placement.what_fits(backend.ggml(), wanted, path, cache_tokens)]:
            verbosity.note(line)


def _shares(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise typer.BadParameter(f"{text!r} isn't a list of numbers such as 3,1", param_hint="--tensor-split") from None
