"""`tritgguf convert`: a Hugging Face folder becomes a GGUF file."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf import converter
from tritgguf.converter.core.registry import names
from tritgguf.converter.planning.targets import TERNARY_TYPES
from tritgguf.runtime.cli.progress import show_progress
from tritgguf.runtime.cli.sizes import shown_size

if TYPE_CHECKING:
    from tritgguf.converter.conversion.pipeline import Choices, Conversion
    from tritgguf.converter.planning.file_plan import FilePlan

TYPES = ", ".join(name for name in names("tritgguf.converter.quant.codecs") if name != "f32")  # which is for norms
METHODS = ", ".join(names("tritgguf.converter.quant.methods"))


# The options, by the names of the function's parameters.
ModelPath = Annotated[
    Path, typer.Argument(help="Hugging Face model folder (config.json, safetensors, tokenizer), or GGUF file.")
]
OutPath = Annotated[Path | None, typer.Argument(help="GGUF file to write; not needed with --dry-run.")]
TypeName = Annotated[str, typer.Option(help=f"Tensor type of the linear layers: auto (smallest exact) or {TYPES}.")]
Target = Annotated[str, typer.Option("--for", help=f"What auto chooses for: {', '.join(TERNARY_TYPES)}.")]
MethodName = Annotated[str, typer.Option(help=f"How linear layers that aren't ternary yet are made so: {METHODS}.")]
Fallback = Annotated[
    str | None, typer.Option(help="Type of linear layers whose rows don't fit --type: f16; without it, stop.")
]
EmbeddingType = Annotated[
    str | None, typer.Option(help="Tensor type of the token embeddings (default: f16, or as a GGUF source has it).")
]
OutputType = Annotated[
    str | None, typer.Option(help="Tensor type of the output layer, where it has its own (default: likewise).")
]
AllowLossy = Annotated[bool, typer.Option("--allow-lossy", help="Go on where a tensor's own grid doesn't fit --type.")]
MaxBits = Annotated[
    float | None,
    typer.Option(help="With auto: where no ternary type is exact, the type of least error of at most so many bits."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and the exact file size; write nothing.")]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; progress goes to standard error as JSON lines.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare the file's token ids with the source tokenizer's.")
]
MaxShardSize = Annotated[
    str | None, typer.Option(help="Split the file into parts of at most this size: bytes, or such as 500M or 4G.")
]
Threads = Annotated[int | None, typer.Option(help="Worker threads (default: one per core).", min=1)]


def convert(
    model: ModelPath,
    out: OutPath = None,
    type: TypeName = "auto",
    target: Target = "cpu",
    method: MethodName = "mse",
    fallback: Fallback = None,
    embedding_type: EmbeddingType = None,
    output_type: OutputType = None,
    allow_lossy: AllowLossy = False,
    max_bits: MaxBits = None,
    dry_run: DryRun = False,
    json_output: JsonOutput = False,
    force: Force = False,
    check: Check = True,
    max_shard_size: MaxShardSize = None,
    threads: Threads = None,
) -> None:
    """Convert a Hugging Face checkpoint, or a GGUF file, to a GGUF file with ternary tensors."""
    choices: Choices = {
        "target": target,
        "fallback": fallback,
        "embedding_type": embedding_type,
        "output_type": output_type,
        "allow_lossy": allow_lossy,
        "max_bits": max_bits,
        "max_shard_size": max_shard_size,
    }
    if dry_run:
        with show_progress(json_output) as progress:
            plan = converter.plan(model, type, method, threads=threads, progress=progress, **choices)
        _print_plan(plan, json_output)
        return
    if out is None:
        raise typer.BadParameter("name the file to write, or add --dry-run", param_hint="OUT")
    from tritgguf.runtime.engine.token_ids_process import (
        token_ids_process,  # not at the top: help shouldn't wait for it
    )

    try:
        with show_progress(json_output) as progress, _uncollected():
            result = converter.convert(
                model,
                out,
                type,
                method,
                force=force,
                check=token_ids_process if check else False,
                threads=threads,
                progress=progress,
                planned=None if json_output else _print_notes,
                **choices,
            )
    except KeyboardInterrupt:
        print(f"error: interrupted; {out} was not written", file=sys.stderr)
        raise
    _print_result(result, json_output)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Leave cycles alone: a vocabulary is a million small objects, to look through which takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _print_result(result: Conversion, json_output: bool) -> None:
    if json_output:
        figures = {"out": str(result.out), "seconds": result.seconds, "strings_checked": result.strings_checked}
        print(json.dumps({**figures, **result.plan.as_json()}))
        return
    print(f"{result.out}: {shown_size(result.plan.file_bytes)} in {result.seconds:.1f} s; {_summary(result.plan)}")
    if result.strings_checked:
        print(f"Token ids equal the source tokenizer's on {result.strings_checked} test strings.")


def _print_plan(plan: FilePlan, json_output: bool) -> None:
    if json_output:
        print(json.dumps(plan.as_json()))
        return
    from rich.console import Console  # not at the top: help shouldn't wait for it
    from rich.table import Table

    table = Table("tensor", "type", "shape", "bytes", "exact", "reason", box=None, pad_edge=False)
    for tensor in plan.tensors:
        exact = {True: "yes", False: "no", None: "?"}[tensor.exact]
        shape = " x ".join(str(size) for size in tensor.spec.shape)
        table.add_row(tensor.spec.name, tensor.codec.name, shape, f"{tensor.n_bytes:,}", exact, tensor.reason)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print(f"{len(plan.tensors)} tensors, {_summary(plan)}")
    print(f"File size: {plan.file_bytes:,} bytes ({shown_size(plan.file_bytes)})")
    _print_notes(plan)


def _print_notes(plan: FilePlan) -> None:
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)


def _summary(plan: FilePlan) -> str:
    types = Counter(tensor.codec.name for tensor in plan.tensors)
    inexact = sum(tensor.exact is False for tensor in plan.tensors)
    unknown = any(tensor.exact is None for tensor in plan.tensors)
    exactness = "exactness unknown" if unknown else f"{inexact} not exact" if inexact else "every tensor exact"
    return ", ".join(f"{count} {name}" for name, count in types.items()) + f"; {exactness}"
