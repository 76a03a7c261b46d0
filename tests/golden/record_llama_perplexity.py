"""Record what llama-perplexity prints: `python -m tests.golden.record_llama_perplexity LLAMA_PERPLEXITY [--check]`.

LLAMA_PERPLEXITY is that program, built from the sdist of the pinned llama-cpp-python (tests/golden/README.md says how).
With --check nothing is written: tritgguf's figures, on this machine, must be the printed ones to the last digit, and
each program must read the base log-probabilities that the other wrote.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests import evaluated_models
from tests.llama_perplexity import FIGURES, read_figures, tolerance
from tritgguf.runtime.measure.base_logits import read_base

GOLDEN = Path(__file__).with_name("llama_perplexity.json")
BASE_LOGITS = Path(__file__).with_name("llama_perplexity.kld.xz")
N_CTX, N_CHUNKS = 128, 8
HEADER_CODES = 4  # of a row: two floats
SMALL_N_CTX, SMALL_N_CHUNKS = 16, 2  # of the file of log-probabilities that is kept


class Programs:
    """Both programs on the same files."""

    def __init__(self, llama_perplexity: Path, folder: Path) -> None:
        self.llama_perplexity, self.folder = llama_perplexity, folder
        self.base = evaluated_models.base_file(folder / "base.gguf")
        self.noisy = evaluated_models.noisy_file(self.base, folder / "noisy.gguf")

    def theirs(self, model: Path, *options: object, n_ctx: int = N_CTX, n_chunks: int = N_CHUNKS) -> str:
        command = [self.llama_perplexity, "-m", model, "-f", evaluated_models.TEXT, "-c", n_ctx, "--chunks", n_chunks]
        command += ["-t", 1, "-tb", 1, *options]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            sys.exit(f"llama-perplexity ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def ours(self, *options: object, n_ctx: int = N_CTX, n_chunks: int = N_CHUNKS) -> dict[str, Any]:
        command: Sequence[object] = [sys.executable, "-m", "tritgguf", "eval", *options, "--chunks", n_chunks]
        command = [*command, "--json", "--threads", 1]
        if "--text" in options:
            command = [*command, "--ctx", n_ctx]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"tritgguf ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def record(programs: Programs) -> None:
    base, small = programs.folder / "base.kld", programs.folder / "small.kld"
    alone = programs.theirs(programs.base, "--save-all-logits", base)
    compared = programs.theirs(programs.noisy, "--kl-divergence", "--kl-divergence-base", base)
    programs.theirs(programs.base, "--save-all-logits", small, n_ctx=SMALL_N_CTX, n_chunks=SMALL_N_CHUNKS)
    build = re.search(r"build: .*|version: .*", alone)
    recorded = {
        "recorded_with": build[0] if build else "llama-cpp-python 0.3.36",
        "ctx": N_CTX,
        "chunks": N_CHUNKS,
        "base": read_figures(alone),
        "noisy": read_figures(compared),
    }
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
    BASE_LOGITS.write_bytes(lzma.compress(small.read_bytes()))
    print(GOLDEN.read_text(), BASE_LOGITS.stat().st_size)


def check(programs: Programs) -> None:
    theirs, ours = programs.folder / "theirs.kld", programs.folder / "ours.kld"
    text = ("--text", evaluated_models.TEXT)
    printed = read_figures(programs.theirs(programs.base, "--save-all-logits", theirs))
    found = programs.ours(programs.noisy, "--against", programs.base, "--base-logits", ours, *text)
    compare("perplexity of the base", printed, found["base"])
    with_theirs = read_figures(programs.theirs(programs.noisy, "--kl-divergence", "--kl-divergence-base", theirs))
    compare("against the base in the same run", with_theirs, found["files"][0])
    compare(
        "against llama-perplexity's file",
        with_theirs,
        programs.ours(programs.noisy, "--base-logits", theirs)["files"][0],
    )
    with_ours = read_figures(programs.theirs(programs.noisy, "--kl-divergence", "--kl-divergence-base", ours))
    compare("llama-perplexity against our file", with_ours, found["files"][0])
    files = read_base(theirs), read_base(ours)
    steps = [
        np.abs(files[0].rows(chunk).astype(int) - files[1].rows(chunk))[:, HEADER_CODES:] for chunk in range(N_CHUNKS)
    ]
    share = np.mean([(chunk == 0).mean() for chunk in steps])
    print(f"codes of the two files: {share:.4%} are the same, the others differ by at most {np.max(steps)}")


def compare(what: str, printed: dict[str, str], found: dict[str, float]) -> None:
    wrong = []
    for name, digits in printed.items():
        value = found[FIGURES[name].key] * FIGURES[name].factor
        if abs(value - float(digits)) > tolerance(digits):
            wrong.append(f"{name}: {digits} printed, {value:.8f} found")
    print(f"{what}: {len(printed) - len(wrong)} of {len(printed)} figures to the last digit", *wrong, sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_perplexity", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(arguments.llama_perplexity.resolve(), Path(folder))
        (check if arguments.check else record)(programs)


if __name__ == "__main__":
    main()
