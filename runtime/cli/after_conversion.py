"""What `tritgguf convert` does with the written file: the verdict on it, its report and its model card."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tritgguf.converter.core.whole_files import require_writable, write_whole
from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.cli import verbosity
from tritgguf.runtime.cli.interruption import reports_interruption
from tritgguf.runtime.cli.progress_bar import show_progress

if TYPE_CHECKING:
    from tritgguf.converter.conversion.pipeline import Conversion
    from tritgguf.runtime.measure.verdict import Verdict


@dataclass(frozen=True)
class AfterConversion:
    """What was asked for: a verdict, and files for a report and a card. The rest are options of `convert`."""

    verdict: bool
    html: Path | None
    card: Path | None
    lora: Path | None
    force: bool
    threads: int | None
    json_output: bool
    budget: bool = False

    @property
    def _files(self) -> list[tuple[str, Path]]:
        return [(option, file) for option, file in (("--html", self.html), ("--card", self.card)) if file is not None]

    def refuse_dry_run(self) -> None:
        """Raise where something was asked for that is about a written file."""
        for option, _ in self._files:
            raise typer.BadParameter("it is about a written file: leave --dry-run out", param_hint=option)

    def require_places(self, out: Path) -> None:
        """Raise, before the model is converted, where what goes with it can't be written."""
        for option, file in self._files:
            if file.resolve() == out.resolve():
                raise typer.BadParameter("it is the GGUF file's name: name another file", param_hint=option)
            require_writable(file, [file], self.force)

    def judge(self, result: Conversion, source: Path) -> Verdict | None:
        """Say what a conversion with loss has left of the model; None if nothing was lost, or they can't run here."""
        lossy = any(tensor.rounded or (self.budget and tensor.exact is False) for tensor in result.plan.tensors)
        if not self.verdict or not lossy:
            return None
        from tritgguf.runtime.cli.native_library import prepare_native_library  # not at the top: they take time to load
        from tritgguf.runtime.measure.verdict import judge

        try:
            with show_progress(self.json_output) as progress:
                prepare_native_library()
                judged = judge(source, result.out, lora=self.lora, threads=self.threads, progress=progress)
        except TritggufError as error:
            verbosity.note(f"no verdict on what is left of the model: {error}")
            return None
        except KeyboardInterrupt:
            print(f"error: interrupted; {result.out} is complete, but there is no verdict on it", file=sys.stderr)
            raise
        if not self.json_output:
            print(f"Verdict: {judged.line}")
        return judged

    def write(self, result: Conversion, source: Path, verdict: Verdict | None) -> None:
        """Write the report and the card, and say so."""
        if self.html is not None:
            from tritgguf.runtime.cli.html_report import report_conversion  # not at the top: jinja2 takes time to load

            with reports_interruption(self.html), show_progress(self.json_output) as progress:
                report_conversion(
                    result,
                    source,
                    self.html,
                    verdict=verdict,
                    lora=self.lora,
                    force=self.force,
                    threads=self.threads,
                    progress=progress,
                )
            self._say("report", self.html)
        if self.card is not None:
            from tritgguf.runtime.measure.model_card import model_card

            write_whole(self.card, model_card(result, verdict).encode(), force=self.force)
            self._say("model card", self.card)

    def _say(self, what: str, file: Path) -> None:
        if not self.json_output:
            print(f"{what}: {file}")
