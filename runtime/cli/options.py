"""Arguments and options that several commands share, with one wording each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer


def completing(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what completes an option's value in a shell."""
    known = list(words)
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


ON_THE_HUB = "org/name, org/name@revision or org/name:FILE.gguf on Hugging Face"
RUNNABLE = "GGUF files, or models as `tritgguf run` takes them"
Model = Annotated[str, typer.Argument(help=f"Model folder, GGUF file, or a name: {ON_THE_HUB}.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on Hugging Face (default: its main branch).")
]
AllowLossy = Annotated[
    bool, typer.Option("--allow-lossy", help="Convert even if quantized weights can't be stored exactly.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be written; change nothing.")]
Fallback = Annotated[
    str | None, typer.Option(help="Tensor type for linear layers whose rows don't fit --type: f16 (default: stop).")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.")]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a report with pictures: one HTML file, to read in a browser.")
]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; write progress to standard error as JSON lines.")
]
Name = Annotated[str | None, typer.Option(help="The model's name, general.name (default: the folder's).")]
OverrideKv = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=TYPE:VALUE",
        help="Set a key of the file, with the type int, float, bool or str, e.g. "
        "tokenizer.ggml.add_bos_token=bool:false; may be repeated.",
    ),
]
Imatrix = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Importance matrix of llama-imatrix or `tritgguf imatrix` (GGUF or .dat), which weighs the errors where "
        "--method quantizes.",
    ),
]
Lora = Annotated[
    Path | None, typer.Option(help="Folder of a PEFT LoRA adapter that is merged into the model's weights.")
]
Smallest = Annotated[
    bool,
    typer.Option(
        "--smallest",
        help="Of exact types, take the smallest one; without this, --for cpu takes the fastest one on this machine.",
    ),
]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor.")]
Threads = Annotated[int | None, typer.Option(help="Number of worker threads (default: one per core).", min=1)]
