"""`tritgguf quantize`: write a quantized Hugging Face folder, or a packed one as plain floats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf import converter
from tritgguf.converter.core.registry import names
from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.cli import options, verbosity
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.model_argument import headers_of_model, local_model, named_model
from tritgguf.runtime.cli.progress_bar import show_progress

if TYPE_CHECKING:
    from tritgguf.converter.export.plan import ExportPlan
    from tritgguf.converter.export.run import Quantization

_SCHEMES = [name.replace("_", "-") for name in names("tritgguf.converter.export.schemes")]
SCHEMES = ", ".join(_SCHEMES)

OutPath = Annotated[Path | None, typer.Argument(help="Folder to write (not needed with --dry-run).")]
SchemeName = Annotated[
    str | None,
    typer.Option(
        help=f"Quantization scheme for linear layers: {SCHEMES}.", autocompletion=options.completing(_SCHEMES)
    ),
]
Dequantize = Annotated[bool, typer.Option("--dequantize", help="Write a packed model or a GGUF file as plain floats.")]
Packed = Annotated[
    bool | None,
    typer.Option(
        "--packed/--dequantized", help="Store packed codes or dequantized floats (default: depends on the scheme)."
    ),
]
Dtype = Annotated[str, typer.Option(help="Float type for dequantized weights: f16, bf16 or f32.")]
Embeddings = Annotated[
    str, typer.Option(help="How absmean-g64 stores embeddings and the output layer: packed or plain.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep finished files if interrupted; reuse those of an interrupted run.")
]


def quantize(
    model: options.Model,
    out: OutPath = None,
    revision: options.Revision = None,
    scheme: SchemeName = None,
    dequantize: Dequantize = False,
    packed: Packed = None,
    dtype: Dtype = "f16",
    embeddings: Embeddings = "packed",
    allow_lossy: options.AllowLossy = False,
    dry_run: options.DryRun = False,
    resume: Resume = False,
    force: options.Force = False,
    json_output: options.JsonOutput = False,
    threads: options.Threads = None,
) -> None:
    """Quantize a Hugging Face model or a GGUF file and write it as a Hugging Face folder."""
    if (scheme is None) != dequantize:
        raise typer.BadParameter("give either --scheme or --dequantize", param_hint="--scheme")
    form = converter.form_named(
        scheme,
        dequantized=None if packed is None else not packed,
        dtype=dtype,
        embeddings=embeddings,
        allow_lossy=allow_lossy,
    )
    if dry_run:
        headers = headers_of_model(model, revision, gguf=True, json_output=json_output)
        with headers as read, show_progress(json_output) as progress:
            plan = converter.plan_quantization(read.path, form, values=read.values, threads=threads, progress=progress)
        _print_plan(plan, json_output)
        return
    if out is None:
        raise typer.BadParameter("name the folder to write, or add --dry-run", param_hint="OUT")
    kept = f"; {out}.part keeps the finished files for --resume" if resume else ""
    with reports_interruption(out, kept):
        if named_model(model, revision) is not None:
            from tritgguf.converter.export.output_folder import require_folder

            require_folder(out, Path(model), force)  # before anything is fetched
        path = local_model(model, revision, json_output=json_output)
    with reports_interruption(out, kept), show_progress(json_output) as progress:
        result = converter.quantize(path, out, form, force=force, resume=resume, threads=threads, progress=progress)
    _print_result(result, dtype, json_output)


def _print_plan(plan: ExportPlan, json_output: bool) -> None:
    if json_output:
        print(json.dumps(plan.as_json()))
        return
    for shard in plan.shards:
        print(f"{shard.file_name}: {len(shard.entries)} tensors, {shard.file_bytes:,} bytes")
    print(f"Size: {plan.weight_bytes:,} bytes ({format_size(plan.weight_bytes)}){_bits(plan)}")
    _print_notes(plan)


def _print_result(result: Quantization, dtype: str, json_output: bool) -> None:
    if json_output:
        print(json.dumps(result.as_json()))
        return
    plan = result.plan
    print(f"{result.out}: {format_size(plan.weight_bytes)} in {result.seconds:.1f} s{_bits(plan)}")
    coded = [fact for fact in result.facts if fact.coded]
    if coded:
        total = math.fsum(fact.sum_of_squares for fact in coded)
        error = math.fsum(fact.squared_error for fact in coded) / total if total else 0.0
        worst = max(coded, key=lambda fact: fact.error)
        print(f"Relative squared error: {error:.3g}, at most {worst.error:.3g} ({worst.name})")
    _print_notes(plan)
    rounded = [fact for fact in result.facts if not fact.coded and fact.squared_error]
    if rounded:
        worst = max(rounded, key=lambda fact: fact.error)
        verbosity.note(
            f"{len(rounded)} tensors are rounded to {dtype}, relative squared error at most {worst.error:.3g} "
            f"({worst.name}); --dtype f32 keeps every value"
        )


def _print_notes(plan: ExportPlan) -> None:
    for note in plan.notes:
        verbosity.note(note)


def _bits(plan: ExportPlan) -> str:
    return f"; {plan.coded_bits:.3f} bits per weight in quantized tensors" if plan.form.scheme else ""


COMMAND = Command("quantize", quantize, rank=6)
