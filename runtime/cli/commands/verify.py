"""`tritgguf verify`: check that a GGUF file matches the model that it was made from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.errors import HubError
from tritgguf.runtime.cli import options, verbosity
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.model_argument import fetched, local_model
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.hub.names import ModelName

if TYPE_CHECKING:
    from tritgguf.converter.verification.verification import Verification
    from tritgguf.runtime.measure.logits_check import LogitsCheck, TemplateCheck

LINES_SHOWN = 10


def verify(
    model: options.Model,
    out: Annotated[
        Path | None,
        typer.Argument(
            help="GGUF file to check; alone, it is compared with the model on Hugging Face that it records."
        ),
    ] = None,
    revision: options.Revision = None,
    logits: Annotated[
        bool,
        typer.Option("--logits", help="Also compare logits with transformers in float32 (needs the extra golden)."),
    ] = False,
    lora: options.Lora = None,
    tensors: options.Tensors = False,
    override_kv: options.OverrideKv = None,
    name: options.Name = None,
    imatrix: options.Imatrix = None,
    json_output: options.JsonOutput = False,
    threads: options.Threads = None,
) -> None:
    """Check a GGUF file against the model it was made from: tensors, metadata, token ids, chat template, logits."""
    from tritgguf.converter.verification.verification import require_good  # imported here to keep --help fast
    from tritgguf.converter.verification.verification import verify as compare
    from tritgguf.runtime.engine.token_ids_process import token_ids_process
    from tritgguf.runtime.measure.logits_check import compare_logits, compare_templates, logits_problem

    source, out = _both(model, out, revision, json_output)
    with show_progress(json_output) as progress:
        found = compare(
            source,
            out,
            lora=lora,
            token_ids=token_ids_process,
            threads=threads,
            progress=progress,
            override_kv=override_kv or (),
            name=name,
            imatrix=imatrix,
        )
    template = compare_templates(found.model.metadata, found.file.metadata)
    problems = [*found.problems, *([template.problem] if template.problem else [])]
    figures = None
    if logits and all(check.good for check in found.tensors):
        figures = compare_logits(found, threads)
        problem = logits_problem(found, figures)
        problems += [problem] if problem else []
    if json_output:
        _print_json(found, template, figures, problems)
    else:
        _print_tensors(found, every=tensors)
        _print_rest(found, template, figures)
    require_good(problems, out)


def _both(model: str, out: Path | None, revision: str | None, json_output: bool) -> tuple[Path, Path]:
    """Return the model and the file to check, which alone records what model it was made from."""
    if out is not None:
        return local_model(model, revision, json_output=json_output), out
    from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf
    from tritgguf.converter.model.hub_source import recorded_source

    file = Path(model)
    if not is_gguf(file):
        raise typer.BadParameter("name the GGUF file to check", param_hint="OUT")
    recorded = recorded_source(read_gguf(file).metadata)
    if recorded is None:
        raise HubError(
            f"{file.name} doesn't record a model on Hugging Face that it was made from: name the model, "
            f"tritgguf verify MODEL {file.name}"
        )
    name = ModelName(recorded.repo, revision or recorded.commit, recorded.file)
    verbosity.note(f"{file.name} says that it was made from {name}")
    return fetched(name, json_output=json_output), file


def _print_json(found: Verification, template: TemplateCheck, figures: LogitsCheck | None, problems: list[str]) -> None:
    rest = {
        "good": not problems,
        "problems": problems,
        "conversations_rendered": template.n_rendered,
        "chat_template": template.problem,
        "logits": figures.as_json() if figures else None,
    }
    print(json.dumps({**found.as_json(), **rest}))


def _print_tensors(found: Verification, *, every: bool) -> None:
    if every:
        for check in found.tensors:
            print(f"{check.verdict:10} {check.line}")
    groups = Counter((check.type, check.reason) for check in found.tensors if check.good)
    for (kind, reason), count in groups.items():
        errors = [c.relative_error or 0.0 for c in found.tensors if (c.type, c.reason) == (kind, reason)]
        error = f", relative error up to {max(errors):.2g}" if max(errors) else ""
        print(f"{count} {kind}: {reason}{error}")
    _print_some([f"{check.verdict}: {check.line}" for check in found.tensors if not check.good], "tensors")


def _print_some(lines: list[str], what: str) -> None:
    for line in lines[:LINES_SHOWN]:
        print(line)
    if len(lines) > LINES_SHOWN:
        print(f"and {len(lines) - LINES_SHOWN} more {what}; --json lists all")


def _print_rest(found: Verification, template: TemplateCheck, figures: LogitsCheck | None) -> None:
    if not found.wrong_keys:
        print("Metadata: every key that the model needs is correct.")
    _print_some([f"metadata: {line}" for line in found.wrong_keys], "keys")
    if found.wrong_keys:
        print("metadata: if convert set these keys with --override-kv, give verify the same options")
    if found.other_keys:
        verbosity.note(f"{len(found.other_keys)} other keys differ, which changes nothing; --json lists them")
    if found.token_ids:
        print(f"token ids: {found.token_ids}")
    elif found.strings_checked:
        print(f"Token ids: equal on {found.strings_checked} test strings.")
    if template.problem:
        print(f"chat template: {template.problem}")
    elif template.n_rendered:
        print(f"Chat template: {template.n_rendered} conversations render the same.")
    if figures:
        print(
            f"Logits: {figures.n_tokens} tokens, relative error {figures.relative_error:.2g}, "
            f"KL divergence {figures.kl_divergence:.2g}, same best token {figures.same_top1:.0%}"
        )


COMMAND = Command("verify", verify, rank=4)
