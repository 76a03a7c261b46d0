"""`tritgguf ollama`: create an Ollama model from a GGUF file."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import OllamaError, UnsupportedError
from tritgguf.runtime.cli import options, verbosity
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.progress_bar import show_progress

if TYPE_CHECKING:
    from tritgguf.runtime.ollama.publish import Package

FilePath = Annotated[Path, typer.Argument(help="GGUF file.", show_default=False)]
Name = Annotated[
    str | None,
    typer.Argument(help="Name of the Ollama model; --force replaces an existing one. Not needed with --check."),
]
System = Annotated[str, typer.Option(help="Default system message of the model.", show_default=False)]
Ctx = Annotated[
    int | None, typer.Option(help="Context length in tokens (default: 4096, or the model's if that is less).")
]
Ask = Annotated[bool, typer.Option("--ask/--no-ask", help="Ask the new model one question as a test.")]
Check = Annotated[bool, typer.Option("--check", help="Only print which Ollama versions load the file.")]


def ollama(
    file: FilePath,
    name: Name = None,
    system: System = "",
    ctx: Ctx = None,
    ask: Ask = True,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    check: Check = False,
    json_output: options.JsonOutput = False,
) -> None:
    """Create an Ollama model from a GGUF file: repack it if Ollama needs that, and write a Modelfile."""
    from tritgguf.runtime.ollama import publish as steps  # imported here to keep --help fast
    from tritgguf.runtime.ollama.model_name import require_model_name

    if check:
        _check(file, json_output)
        return
    if name is None:
        raise typer.BadParameter("name the model to create, or add --check", param_hint="NAME")
    require_model_name(name)
    with show_progress(json_output) as progress:
        package = steps.pack(file, system=system, context=ctx, progress=progress)
    report = _Report(json_output)
    report.packed(package)
    if dry_run:
        report.dry_run(package, name)
    done = dry_run or _create(package, name, report, ask=ask, force=force)
    report.end()
    if not done:
        raise OllamaError(
            f"{name} wasn't created: there is no Ollama here; run these commands where it is, or start `ollama serve` "
            "and try again"
        )


def _create(package: Package, name: str, report: _Report, *, ask: bool, force: bool) -> bool:
    """Write the files and create the model; return False if there is no Ollama that could."""
    from tritgguf.runtime.ollama import publish as steps
    from tritgguf.runtime.ollama.api import Ollama
    from tritgguf.runtime.ollama.disk_space import space_problem

    client = Ollama()
    version = steps.find_server(client)
    if version is not None:
        steps.require_creatable(package, client, version, name, force=force)
    with show_progress(report.json_output) as progress:
        steps.write(package, force=force, progress=progress)
        report.written(package)
        if version is not None:
            if problem := space_problem(client.address, version, package.file_bytes):
                report.note(problem)
            steps.create(package, client, name, progress)
    if version is None:
        report.commands(package, name, "Ollama wasn't found here. To create the model elsewhere, run:")
        return False
    report.say(
        f"Created {name} in Ollama {version} at {client.address}; start it with: ollama run {name}", created=name
    )
    if ask:
        answer = steps.ask(client, name)
        report.say(f"> {steps.QUESTION}\n{answer or '(no answer)'}", question=steps.QUESTION, answer=answer)
    return True


class _Report:
    """Prints each step as a line, or everything as one JSON object at the end."""

    def __init__(self, json_output: bool) -> None:
        self.json_output = json_output
        self.notes: list[str] = []
        self.found: dict[str, object] = {"notes": self.notes}

    def say(self, line: str, **facts: object) -> None:
        self.found |= facts
        if not self.json_output:
            print(line, flush=True)

    def packed(self, package: Package) -> None:
        self.found["template"] = package.chat.family
        for note in package.chat.notes:
            self.note(note)

    def note(self, note: str) -> None:
        self.notes.append(note)
        if not self.json_output:
            verbosity.note(note)

    def written(self, package: Package) -> None:
        if package.plan is not None:
            self.say(self._repacked(package), repacked=package.why_repacked)
        self.say(
            f"{package.modelfile_path}: {self._template(package)}",
            file=str(package.file),
            modelfile=str(package.modelfile_path),
        )

    def dry_run(self, package: Package, name: str) -> None:
        if package.plan is not None:
            self.say(f"would write {self._repacked(package)}", repacked=package.why_repacked)
        text = package.modelfile.text()
        self.say(f"would write {package.modelfile_path} ({self._template(package)}):\n\n{text}", text=text)
        self.commands(
            package, name, "would create the model through Ollama's API; without Ollama, would print these commands:"
        )

    def commands(self, package: Package, name: str, line: str) -> None:
        lines = package.commands(name)
        self.say("\n".join((line, *(f"  {command}" for command in lines))), commands=list(lines))

    def end(self) -> None:
        if self.json_output:
            print(json.dumps(self.found))

    @staticmethod
    def _repacked(package: Package) -> str:
        assert package.plan is not None
        types = Counter(tensor.codec.name for tensor in package.plan.tensors)
        exact = all(tensor.exact for tensor in package.plan.tensors)
        held = ", ".join(f"{count} {kind}" for kind, count in types.items())
        kept = "all values unchanged" if exact else "some values rounded"
        return f"{package.file}: {format_size(package.plan.file_bytes)}; {held}; {kept} ({package.why_repacked})"

    @staticmethod
    def _template(package: Package) -> str:
        if package.chat.template is None:
            return "no TEMPLATE: Ollama renders the file's Jinja template"
        return f"TEMPLATE {package.chat.family}" if package.chat.family != "none" else "TEMPLATE for a base model"


def _check(file: Path, json_output: bool) -> None:
    from tritgguf.runtime.ollama import publish as steps

    found = steps.check(file)
    if json_output:
        rows = [{"versions": v.era.name, "loads": v.loads, "reasons": list(v.reasons)} for v in found.verdicts]
        print(json.dumps({"versions": rows, "template": found.family, "notes": list(found.notes)}))
    else:
        answers = {True: "loads it", False: "doesn't load it", None: "unknown"}
        for verdict in found.verdicts:
            why = f": {'; '.join(verdict.reasons)}" if verdict.reasons else ""
            print(f"Ollama {verdict.era.name}: {answers[verdict.loads]}{why}")
            print(f"  prompt: {verdict.era.template}")
        print(f"Go template equal to the file's chat template: {found.family}")
        for note in () if verbosity.is_quiet() else found.notes:
            print(f"note: {note}")
    if not found.loads_now:
        newest = found.verdicts[-1]
        command = shlex.join(("tritgguf", "ollama", file.name))
        remedy = f"`{command} NAME` repacks it if possible" if found.repack_helps else "no repacking changes that"
        raise UnsupportedError(
            f"{file.name} doesn't load in Ollama {newest.era.name}: it {'; '.join(newest.reasons)}; {remedy}"
        )


COMMAND = Command("ollama", ollama, rank=5)
