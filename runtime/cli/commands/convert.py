"""`tritgguf convert`: write a GGUF file from a Hugging Face folder or another GGUF file."""

from __future__ import annotations

import contextlib
import gc
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tritgguf import converter
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.planning.calibration import GPTQ
from tritgguf.runtime.cli import convert_options, options, verbosity
from tritgguf.runtime.cli.budget import Budget
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.model_argument import fetched, headers_of_model, local_model, named_model
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.cli.text_argument import local_text

if TYPE_CHECKING:
    from tritgguf.converter.conversion.pipeline import Choices, Conversion
    from tritgguf.converter.planning.file_plan import FilePlan
    from tritgguf.runtime.cli.after_conversion import AfterConversion
    from tritgguf.runtime.hub.headers import Readable
    from tritgguf.runtime.measure.budget import Chosen
    from tritgguf.runtime.measure.verdict import Verdict


def convert(
    model: options.Model,
    out: convert_options.OutPath = None,
    revision: options.Revision = None,
    type: convert_options.TypeName = "auto",
    target: convert_options.Target = "cpu",
    method: convert_options.MethodName = "mse",
    fallback: options.Fallback = None,
    embedding_type: convert_options.EmbeddingType = None,
    output_type: convert_options.OutputType = None,
    allow_lossy: options.AllowLossy = False,
    budget: convert_options.Budget = None,
    max_bits: convert_options.MaxBits = None,
    smallest: options.Smallest = False,
    dry_run: options.DryRun = False,
    json_output: options.JsonOutput = False,
    force: options.Force = False,
    check: convert_options.Check = True,
    verdict: convert_options.Judge = True,
    max_shard_size: convert_options.MaxShardSize = None,
    tensor_type: convert_options.TensorType = None,
    override_kv: options.OverrideKv = None,
    name: options.Name = None,
    lora: options.Lora = None,
    imatrix: options.Imatrix = None,
    html: options.Html = None,
    card: convert_options.Card = None,
    calibration: convert_options.CalibrationText = None,
    calibration_chunks: convert_options.CalibrationChunks = None,
    seed: convert_options.Seed = None,
    gptq_without: convert_options.Without = None,
    untie: convert_options.Untie = False,
    tune: convert_options.Tune = None,
    threads: options.Threads = None,
) -> None:
    """Convert a Hugging Face model or a GGUF file to a GGUF file with ternary tensors.

    With --dry-run, of a model on Hugging Face that wasn't fetched yet only the headers are read.
    """
    from tritgguf.runtime.cli.after_conversion import AfterConversion  # not at the top: the help needn't wait
    from tritgguf.runtime.engine.decode_speed import seconds_if_known
    from tritgguf.runtime.engine.kernels.install import fast_types

    after = AfterConversion(verdict, html, card, lora, force, threads, json_output, budget is not None)
    within = None
    if budget is not None:
        within = Budget(
            budget, calibration or (), None if method == GPTQ else calibration_chunks, seed, lora, threads, json_output
        )
        within.require_sense(type, fallback=fallback, max_bits=max_bits, smallest=smallest, untie=untie)
        type = "f16"
        if method != GPTQ:  # which calibrates after that on the same text
            calibration, calibration_chunks, seed = None, None, None
    types = [type, embedding_type, output_type, *(text.rpartition("=")[2] for text in tensor_type or ())]
    by_speed = target == "cpu" and "auto" in types and not smallest
    choices: Choices = {
        "target": target,
        "fallback": fallback,
        "embedding_type": embedding_type,
        "output_type": output_type,
        "allow_lossy": allow_lossy,
        "max_bits": max_bits,
        "max_shard_size": max_shard_size,
        "tensor_type": tensor_type or (),
        "override_kv": override_kv or (),
        "name": name,
        "fast_here": fast_types() if target == "cpu" else (),
        "imatrix": imatrix,
        "seconds_per_weight": seconds_if_known(verbosity.note) if by_speed else {},
        "calibration": calibration or (),
        "calibration_chunks": calibration_chunks,
        "seed": seed,
        "gptq_without": (gptq_without,) if gptq_without else (),
        "untie": untie,
        "tune": tune,
    }
    fast = ", ".join(sorted(choices["fast_here"])) or "none"
    verbosity.detail(f"reading {model}; types that tritgguf's CPU kernels multiply here: {fast}")
    wanted = _Wanted(model, revision, type, method, lora, choices, within, after, threads, json_output)
    if dry_run:
        after.refuse_dry_run()
        wanted.plan()
    elif out is None:
        raise typer.BadParameter("name the GGUF file to write, or add --dry-run", param_hint="OUT")
    else:
        wanted.write(out, force=force, check=check)


@dataclass(frozen=True)
class _Wanted:
    """What was asked for; `choices` are the converter's options, `within` is the budget, if there is one."""

    model: str
    revision: str | None
    type: str
    method: str
    lora: Path | None
    choices: Choices
    within: Budget | None
    after: AfterConversion
    threads: int | None
    json_output: bool

    def plan(self) -> None:
        """Print what would be written."""
        if self.within is not None:
            path = local_model(self.model, self.revision, json_output=self.json_output)
            chosen, *_ = self.within.choose(path, None, self.method, self.choices)
            _print_plan(chosen.plan, self.json_output, chosen)
            return
        headers = _planned_from(self.model, self.revision, self.lora, self.json_output)
        with headers as read, show_progress(self.json_output) as progress:
            plan = converter.plan(
                read.path,
                self.type,
                self.method,
                lora=self.lora,
                values=read.values,
                threads=self.threads,
                progress=progress,
                **self.choices,
            )
        _print_plan(plan, self.json_output)

    def write(self, out: Path, *, force: bool, check: bool) -> None:
        """Write the file and print what was written, and what follows a conversion."""
        from tritgguf.runtime.engine.token_ids_process import token_ids_process  # not at the top: the help needn't wait

        with reports_interruption(out):
            path, choices = self._fetched(out, force)
            chosen, method = None, self.method
            if self.within is not None:
                chosen, method, choices = self.within.choose(path, out, method, choices)
        fits = method == GPTQ
        kept = "; the same command goes on with the blocks that are done" if fits else ""
        tidying = contextlib.nullcontext() if fits else _without_gc()
        with reports_interruption(out, kept), show_progress(self.json_output) as progress, tidying:
            result = converter.convert(
                path,
                out,
                self.type,
                method,
                lora=self.lora,
                force=force,
                check=token_ids_process if check else False,
                threads=self.threads,
                progress=progress,
                planned=None if self.json_output else _print_planned,
                told=None if self.json_output else verbosity.note,
                **choices,
            )
        if chosen is not None:
            result = replace(result, plan=replace(result.plan, notes=(*chosen.lines, *result.plan.notes)))
        if not self.json_output:
            _print_result(result)
        judged = self.after.judge(result, path)
        self.after.write(result, path, judged)
        if self.json_output:
            _print_json(result, judged, chosen)

    def _fetched(self, out: Path, force: bool) -> tuple[Path, Choices]:
        """Return the model and the calibration text on this disk; what is senseless fails before they are fetched."""
        from tritgguf.converter.core.whole_files import require_writable  # not at the top: the help needn't wait
        from tritgguf.converter.planning.request import Request

        name, texts = named_model(self.model, self.revision), self.choices["calibration"]
        if name is not None or texts or self.within is not None:
            require_writable(out, [out], force)
            Request.named(self.type, self.method, chosen_later=self.within is not None, **self.choices)
        self.after.require_places(out)
        local = [local_text(str(text), json_output=self.json_output) for text in texts]
        path = Path(self.model) if name is None else fetched(name, json_output=self.json_output)
        return path, {**self.choices, "calibration": local}


@contextlib.contextmanager
def _planned_from(model: str, revision: str | None, lora: Path | None, json_output: bool) -> Iterator[Readable]:
    """Yield the model to plan from: its headers, but for an adapter, which can only be merged into weights."""
    if lora is not None:
        from tritgguf.runtime.hub.headers import Readable  # not at the top: the help needn't wait

        yield Readable(local_model(model, revision, json_output=json_output), True)
        return
    with headers_of_model(model, revision, gguf=True, json_output=json_output) as read:
        yield read


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Pause garbage collection: scanning the vocabulary's million small objects takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _print_json(result: Conversion, judged: Verdict | None, chosen: Chosen | None) -> None:
    figures = {"out": str(result.out), "seconds": result.seconds, "strings_checked": result.strings_checked}
    verdict = None if judged is None else judged.as_json()
    budget = {} if chosen is None else {"budget": chosen.as_json()}
    print(json.dumps({**figures, **result.plan.as_json(), **budget, "verdict": verdict}))


def _print_result(result: Conversion) -> None:
    print(f"{result.out}: {format_size(result.plan.file_bytes)} in {result.seconds:.1f} s; {_summary(result.plan)}")
    if result.strings_checked:
        print(f"Token ids equal the source tokenizer's on {result.strings_checked} test strings.")


def _print_plan(plan: FilePlan, json_output: bool, chosen: Chosen | None = None) -> None:
    if json_output:
        budget = {} if chosen is None else {"budget": chosen.as_json()}
        print(json.dumps({**plan.as_json(), **budget}))
        return
    from rich.table import Table  # imported here to keep --help fast

    from tritgguf.runtime.cli.tables import TableConsole

    table = Table("tensor", "type", "shape", "bytes", "exact", "reason", box=None, pad_edge=False)
    for tensor in plan.tensors:
        exact = {True: "yes", False: "no", None: "?"}[tensor.exact]
        shape = " x ".join(str(size) for size in tensor.spec.shape)
        table.add_row(tensor.spec.name, tensor.codec.name, shape, f"{tensor.n_bytes:,}", exact, tensor.reason)
    TableConsole(width=200).print(table)
    print(f"{len(plan.tensors)} tensors, {_summary(plan)}")
    print(f"File size: {plan.file_bytes:,} bytes ({format_size(plan.file_bytes)})")
    _print_notes(plan)


def _print_planned(plan: FilePlan) -> None:
    """Print what was chosen and why, tensors of all layers in one line, and the notes."""
    if verbosity.is_verbose():
        alike = Counter(
            (re.sub(r"\d+", "*", tensor.spec.name), tensor.codec.name, tensor.reason) for tensor in plan.tensors
        )
        for (name, kind, reason), count in alike.items():
            verbosity.detail(f"{count} x {name}: {kind}, {reason}")
    _print_notes(plan)


def _print_notes(plan: FilePlan) -> None:
    for note in plan.notes:
        verbosity.note(note)


def _summary(plan: FilePlan) -> str:
    types = Counter(tensor.codec.name for tensor in plan.tensors)
    inexact = sum(tensor.exact is False for tensor in plan.tensors)
    unknown = any(tensor.exact is None for tensor in plan.tensors)
    exactness = "exactness unknown" if unknown else f"{inexact} not exact" if inexact else "every tensor exact"
    return ", ".join(f"{count} {name}" for name, count in types.items()) + f"; {exactness}"


COMMAND = Command("convert", convert, rank=1)
