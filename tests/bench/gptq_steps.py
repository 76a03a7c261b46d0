"""What each step of `convert --method gptq` brings: perplexity, KL divergence and same top-1 on a text. Needs torch.

python -m tests.bench.gptq_steps MODEL TEXT FOLDER [row ...] [--calibration FILE ...] [--chunks 128] [--eval-chunks 8]

MODEL is a Hugging Face folder, TEXT what is measured on, which no calibration text may contain. Files and a line of
JSON for each row are written into FOLDER; files that are there are kept, so a stopped run goes on. The row `absmax` is
llama.cpp's quantizer, and the row `imatrix` needs --imatrix, a file of `tritgguf imatrix`. `--tune STEPS` tunes the
rows of gptq.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.peers import quantize_command
from tritgguf.converter import convert
from tritgguf.runtime.measure.evaluation import evaluate

TYPE = "q2_0"
ADDED = ("token-weights", "correction", "refit", "descent", "rotation")  # to feedback, one after the other
ROWS: dict[str, dict[str, Any]] = {
    "absmax": {"method": "absmax"},
    "absmean": {"method": "absmean"},
    "mse": {"method": "mse"},
    "imatrix": {"method": "four_levels"},
    "feedback": {"gptq_without": ADDED},
    **{step: {"gptq_without": ADDED[number:]} for number, step in enumerate(ADDED, 1)},
    "three-codes": {"gptq_without": ("rotation", "fourth-code")},
    "rotation-without-descent": {"gptq_without": ("descent",)},
}


def measured(row: str, arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Convert one row's file, unless it is there, and return its figures."""
    tuned = f"-tuned-{arguments.tune}" if arguments.tune else ""
    options, out = {"method": "gptq", **ROWS[row]}, arguments.folder / f"{row}-{arguments.chunks}{tuned}.gguf"
    config = json.loads((arguments.model / "config.json").read_text())
    if options["method"] == "gptq":
        options |= {
            "calibration": arguments.calibration,
            "calibration_chunks": arguments.chunks,
            "seed": arguments.seed,
            "untie": row.startswith("rotation") and bool(config.get("tie_word_embeddings")),
            "tune": arguments.tune,
        }
    started = time.process_time()
    if row == "absmax" and not out.exists():
        command = quantize_command(base, out, TYPE, arguments.threads, arguments.imatrix)
        subprocess.run([*map(str, command)], check=True)
    elif not out.exists():
        options |= {"imatrix": arguments.imatrix} if row == "imatrix" else {}
        convert(arguments.model, out, TYPE, threads=arguments.threads, check=False, told=print, **options)
    seconds = time.process_time() - started
    found = evaluate(
        [out], against=base, text=arguments.text, n_chunks=arguments.eval_chunks, threads=arguments.threads
    )
    made = {"row": row + tuned, "calibration_chunks": arguments.chunks, "cpu_seconds": round(seconds)}
    return {**made, **found.files[0].as_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=[*ROWS, []])
    parser.add_argument("--calibration", type=Path, action="append", default=[])
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--tune", type=int)
    for name, default in (("--chunks", 128), ("--eval-chunks", 8), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    arguments = parser.parse_args()
    base = arguments.folder / "f16.gguf"
    if not base.exists():
        convert(arguments.model, base, "f16", check=False, threads=arguments.threads)
    print("| row | CPU s | perplexity | KLD | same top-1 % |\n|---|---|---|---|---|")
    for row in arguments.rows:
        found = measured(row, arguments, base)
        with (arguments.folder / "gptq-steps.jsonl").open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        figures = (found["ppl"], found["kld_mean"], 100 * found["same_top1"])
        print(f"| {row} | {found['cpu_seconds']} | " + " | ".join(f"{value:.3g}" for value in figures) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
