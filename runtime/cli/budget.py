"""`convert --budget`: what it goes with, the measurement, and the types that are handed to convert."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.planning.calibration import GPTQ
from tritgguf.runtime.cli import verbosity
from tritgguf.runtime.cli.progress_bar import show_progress
from tritgguf.runtime.cli.text_argument import local_text

if TYPE_CHECKING:
    from tritgguf.converter.conversion.pipeline import Choices
    from tritgguf.runtime.measure.budget import Chosen

UNCALIBRATED: Choices = {
    "calibration": (),
    "calibration_chunks": None,
    "seed": None,
    "gptq_without": (),
    "untie": False,
    "tune": None,
}


@dataclass(frozen=True)
class Budget:
    """What was asked for: the size as the user wrote it, and the text to measure on; the rest are convert's options.

    `n_chunks` is how many the trials take; gptq has a number of its own.
    """

    text: str
    calibration: Sequence[str]
    n_chunks: int | None
    seed: int | None
    lora: Path | None
    threads: int | None
    json_output: bool

    def require_sense(
        self, type: str, *, fallback: str | None, max_bits: float | None, smallest: bool, untie: bool
    ) -> None:
        """Raise UnsupportedError where other options contradict --budget."""
        if type != "auto":
            raise UnsupportedError(
                f"--budget {self.text} chooses the types of all matrices itself, so leave --type {type} out, or fix "
                "the types of some by --tensor-type, --embedding-type and --output-type"
            )
        if untie:
            raise UnsupportedError(
                f"--budget {self.text} spends bytes where they count, and --untie spends them on a copy of the "
                "embeddings: leave one of both out"
            )
        others = {"--fallback": fallback, "--max-bits": max_bits, "--smallest": smallest or None}
        if given := [name for name, value in others.items() if value is not None]:
            raise UnsupportedError(
                f"{given[0]} has no meaning with --budget {self.text}, which takes only types that fit and loses "
                f"least: leave {given[0]} out"
            )
        if self.n_chunks is not None and self.n_chunks < 1:
            raise UnsupportedError(f"--calibration-chunks {self.n_chunks}: expected at least 1")
        if self.seed is not None and self.seed < 0:
            raise UnsupportedError(f"--seed {self.seed}: expected 0 or more")

    def choose(self, path: Path, out: Path | None, method: str, choices: Choices) -> tuple[Chosen, str, Choices]:
        """Measure, tell what was chosen, and return it with the method and options that make `convert` write it as f16.

        Where gptq has nothing to fit, they don't ask for it. The copy of the model that is measured lies beside `out`,
        or in the folder for temporary files, until it is loaded.
        """
        from tritgguf.converter.planning.request import Request  # not at the top: the help needn't wait
        from tritgguf.runtime.cli.native_library import prepare_native_library

        request = Request.named("f16", method, chosen_later=True, **choices)
        prepare_native_library()
        from tritgguf.runtime.measure.budget import measure, opened_trials, prepare, solve

        texts = [local_text(text, json_output=self.json_output) for text in self.calibration]
        with show_progress(self.json_output) as reading:
            choosing = prepare(path, request, self.text, lora=self.lora, threads=self.threads, progress=reading)
        with contextlib.ExitStack() as stack:
            with show_progress(self.json_output) as copying:
                trials = stack.enter_context(opened_trials(choosing, None if out is None else out.parent, copying))
            progress = stack.enter_context(show_progress(self.json_output, unit="tokens"))
            measured = measure(choosing, trials, texts, self.n_chunks, self.seed, progress=progress, told=self._note)
        chosen = solve(choosing, measured)
        self._tell(chosen)
        types = (*choices["tensor_type"], *chosen.tensor_types)
        choices = {**choices, "tensor_type": types, "imatrix": choices["imatrix"] if chosen.weighs else None}
        if method == GPTQ and not chosen.fits:
            self._note(f"no layer has a type that {GPTQ} fits within this budget, so there is nothing to calibrate")
            return chosen, "mse", {**choices, **UNCALIBRATED}
        return chosen, method, choices

    def _tell(self, chosen: Chosen) -> None:
        for line in chosen.lines:
            self._note(line)
        for text in () if self.json_output else chosen.tensor_types:
            verbosity.detail(f"--tensor-type '{text}'")

    def _note(self, line: str) -> None:
        if not self.json_output:
            verbosity.note(line)
