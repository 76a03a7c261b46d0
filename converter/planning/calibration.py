"""What was asked of `--method gptq`: the text to calibrate on, which steps to leave out, and how long to tune."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.errors import UnsupportedError

GPTQ = "gptq"
# What each step is for: docs/quality.md.
STEPS = ("rotation", "correction", "feedback", "refit", "descent", "token-weights", "fourth-code")
TYPES = ("tq1_0", "tq2_0", "q2_0", "q2_k")
N_CHUNKS = 128
TUNED_STEPS = "quantize.tune.steps"  # key of a file: how many steps its scales and norms were tuned; 0: left as fitted


@dataclass(frozen=True)
class Calibration:
    """The files of text, none for the default text; how many chunks of them, chosen by `seed`; steps left out.

    `untie` gives a model whose output layer is its embeddings one of its own, so that it can be rotated.
    `tune` is the number of steps of tuning afterwards, None for no tuning.
    """

    texts: tuple[Path, ...] = ()
    n_chunks: int = N_CHUNKS
    seed: int = 0
    without: frozenset[str] = frozenset()
    untie: bool = False
    tune: int | None = None

    def does(self, step: str) -> bool:
        """Whether a step of STEPS isn't left out."""
        return step not in self.without


def calibration_for(
    method: str,
    types: Collection[str] | None,
    texts: Iterable[str | os.PathLike[str]] = (),
    n_chunks: int | None = None,
    seed: int | None = None,
    without: Iterable[str] = (),
    *,
    untie: bool = False,
    tune: int | None = None,
) -> Calibration | None:
    """Return what was asked of gptq, None with another method; raise UnsupportedError where it makes no sense.

    `types` are those asked for, of all linear layers and of single tensors, None where they are chosen later. Each text
    of `without` names a step, or several with commas between them.
    """
    paths, steps = tuple(Path(text) for text in texts), frozenset(_split(without))
    if method != GPTQ:
        if paths or steps or untie or any(number is not None for number in (n_chunks, seed, tune)):
            raise UnsupportedError(
                "--calibration, --calibration-chunks, --seed, --gptq-without, --untie and --tune belong to --method "
                f"{GPTQ}; found --method {method}"
            )
        return None
    if types is not None and not set(types) & set(TYPES):
        raise UnsupportedError(
            f"--method {GPTQ} fits codes for {', '.join(TYPES)}; found {', '.join(types)}: ask for one of them, for "
            "all linear layers (--type) or for some (--tensor-type)"
        )
    if unknown := sorted(steps - set(STEPS)):
        raise UnsupportedError(f"--gptq-without {unknown[0]}: unknown step; expected one of {', '.join(STEPS)}")
    if untie and "rotation" in steps:
        raise UnsupportedError("--untie is for the rotation, which --gptq-without leaves out: leave one of them out")
    if n_chunks is not None and n_chunks < 2:
        raise UnsupportedError(f"--calibration-chunks {n_chunks}: expected at least 2, of which one is held out")
    if seed is not None and seed < 0:
        raise UnsupportedError(f"--seed {seed}: expected 0 or more")
    if tune is not None and tune < 1:
        raise UnsupportedError(f"--tune {tune}: expected at least 1 step")
    return Calibration(paths, n_chunks or N_CHUNKS, seed or 0, steps, untie, tune)


def _split(texts: Iterable[str]) -> list[str]:
    return [step.strip() for text in texts for step in text.split(",")]
