"""`--tune`: the steps of tuning, kept as they are done, and whether their result is better on held-out text."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tritgguf.converter.calibration.blocks import Decoder, fast_gradients
from tritgguf.converter.calibration.distill import Distillation, batches
from tritgguf.converter.calibration.kept import STEPS, Kept
from tritgguf.converter.calibration.student import BIASES, NORMS, ROWS, SCALES, Student
from tritgguf.converter.calibration.text import STEP_CHUNKS, Chunks
from tritgguf.converter.calibration.tuned_model import as_fitted, originals, with_parts
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.calibration import GPTQ
from tritgguf.converter.planning.file_plan import FilePlan

STAGE = "tuning"
RATES = {SCALES: 3e-3, ROWS: 6e-3, NORMS: 1e-2, BIASES: 1e-3}  # of a small model, a third of them in others
SMALL = 300_000_000  # weights of linear layers
WARM_UP = 8  # steps, at most a quarter of all
LINES = 10  # told while it runs
SAVED_EVERY = 30.0  # seconds


def better(
    model: Model,
    plan: FilePlan,
    steps: int,
    seed: int,
    texts: tuple[Chunks, Chunks],
    kept: Kept,
    tell: Callable[[str], None],
    progress: Progress | None,
    threads: int,
) -> Model:
    """Return the model tuned on the first text, or as it is where that predicts the second one better.

    A note has both figures. Both are measured with the values that the file stores.
    """
    assert model.tensors is not None
    torch.set_num_threads(threads)
    chunks, held_out = texts
    decoder = Decoder(model.path, model.specs, originals(model.tensors))
    distillation = Distillation(decoder)

    def student(some: Model) -> Student:
        assert some.tensors is not None
        return Student(plan.tensors, some.tensors, len(decoder), decoder.device)

    tuning = Tuning(distillation, student(model), steps, seed, kept.folder / STEPS)
    n_bytes = sum(tensor.n_bytes for tensor in plan.tensors if tensor.spec.role == "linear")
    report = counted(progress, STAGE, steps * n_bytes)
    report(tuning.done * n_bytes)
    times = steps * STEP_CHUNKS / len(chunks)
    tell(f"tuning on {len(chunks)} chunks that {GPTQ} didn't take, each {times:.1f} times, on {decoder.device.type}")
    tuning.run(chunks, tell, lambda share: report(int(share * n_bytes)))
    before = distillation.divergence(student(model), held_out)
    what = f"KL divergence on {len(held_out)} held-out chunks, {before:.4g} before,"
    result = with_parts(model, tuning.student.stored(), kept)
    if result is None:
        return as_fitted(model, f"{what} isn't a number after {steps} steps: {GPTQ}'s scales stay")
    after = distillation.divergence(student(result), held_out)
    what = f"{what} is {after:.4g} after {steps} steps"
    if not after < before:
        return as_fitted(model, f"{what}: {GPTQ}'s scales stay")
    return replace(result, notes=[*model.notes, f"--tune: {what}"])


class Tuning:
    """Steps of Adam on the student's changes; `saved` is the file that keeps them."""

    def __init__(self, distillation: Distillation, student: Student, steps: int, seed: int, saved: Path) -> None:
        self.distillation, self.student, self.steps, self.seed, self.saved = distillation, student, steps, seed, saved
        share = 1 if student.n_linear_weights < SMALL else 1 / 3
        changes = [*student.changes()]
        self.rates = {kind: share * rate for kind, rate in RATES.items() if kind in {other for other, _ in changes}}
        groups = [{"params": [change for other, change in changes if other == kind]} for kind in self.rates]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-9)
        self.done = self._resumed()

    def run(self, chunks: Chunks, tell: Callable[[str], None], tick: Callable[[float], None]) -> None:
        """Make the steps that are left, on batches of these chunks; `tick` gets shares of a step."""
        order = batches(len(chunks), STEP_CHUNKS, self.steps, self.seed)
        last_saved = time.monotonic()
        while self.done < self.steps:
            for group, rate in zip(self.optimizer.param_groups, self.rates.values(), strict=True):
                group["lr"] = rate * schedule(self.done, self.steps)
            self.optimizer.zero_grad()
            with fast_gradients():
                divergence = self.distillation.gradients(self.student, chunks[order[self.done]], tick)
            self.optimizer.step()
            self.done += 1
            if self.done == self.steps or time.monotonic() - last_saved >= SAVED_EVERY:
                self._save()
                last_saved = time.monotonic()
            if self.done * LINES // self.steps > (self.done - 1) * LINES // self.steps:
                tell(f"tuning, step {self.done} of {self.steps}: KL divergence {divergence:.4g} on its text")

    def _save(self) -> None:
        buffer = io.BytesIO()
        changes = [change.detach() for _, change in self.student.changes()]
        torch.save({"done": self.done, "changes": changes, "optimizer": self.optimizer.state_dict()}, buffer)
        write_whole(self.saved, buffer.getvalue(), force=True)

    def _resumed(self) -> int:
        """Take up what an earlier run saved; return how many steps it made."""
        if not self.saved.is_file():
            return 0
        try:
            found: Mapping[str, Any] = torch.load(self.saved, map_location=self.distillation.device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):  # damaged
            return 0
        self.optimizer.load_state_dict(found["optimizer"])
        with torch.no_grad():
            for (_, change), value in zip(self.student.changes(), found["changes"], strict=True):
                change.copy_(value)
        return int(found["done"])


def schedule(done: int, steps: int) -> float:
    """Return the share of the rates in the step behind `done` ones: it rises, then falls along a cosine."""
    rising = max(1, min(WARM_UP, steps // 4))
    if done < rising:
        return (done + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (done - rising) / (steps - rising))
