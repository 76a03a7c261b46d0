"""What an importance matrix brings: methods with and without one, and llama.cpp's quantizers, by `tritgguf eval`.

`python -m tests.bench.imatrix_quality MODEL WORK --calibration TEXT --text TEXT` makes the
files in the folder WORK, those that aren't there yet, and prints a table; `--json FILE` keeps the figures. Embeddings
and the output layer are F16 in all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.bench.peers import FILE_TYPES, quantize_command

# A file's name, the type, the method, and whether with the importance matrix.
OURS = (
    ("q2_0 absmean", "q2_0", "absmean", False),
    ("q2_0 mse", "q2_0", "mse", False),
    ("q2_0 mse, weighted", "q2_0", "mse", True),
    ("q2_0 four_levels", "q2_0", "four_levels", False),
    ("q2_0 four_levels, weighted", "q2_0", "four_levels", True),
    ("tq2_0 absmean", "tq2_0", "absmean", False),
    ("tq2_0 mse", "tq2_0", "mse", False),
    ("tq2_0 mse, weighted", "tq2_0", "mse", True),
)
FIGURES = ("linear_bits_per_weight", "ppl", "kld_mean", "kld_error", "same_top1")


def tritgguf(*arguments: object) -> str:
    command = [sys.executable, "-m", "tritgguf", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def made(arguments: argparse.Namespace) -> dict[str, Path]:
    """Make what is missing; return the files by the names of their rows."""
    work, base, imatrix = arguments.work, arguments.work / "base.gguf", arguments.work / "imatrix.gguf"
    if not base.exists():
        tritgguf("convert", arguments.model, base, "--type", "f16", "--no-check")
    if not imatrix.exists():
        chunks = ("--chunks", arguments.calibration_chunks, "--threads", arguments.threads)
        tritgguf("imatrix", base, "--text", arguments.calibration, "-o", imatrix, *chunks)
    files = {}
    for name, kind, method, weighted in OURS:
        files[name] = work / f"{name.replace(', ', '-').replace(' ', '-')}.gguf"
        if not files[name].exists():
            options = ["--type", kind, "--method", method, "--fallback", "f16", "--no-check", "--no-verdict"]
            options += ["--imatrix", imatrix] if weighted else []
            tritgguf("convert", arguments.model, files[name], *options)
    for kind in arguments.peers:
        name = f"llama-quantize {kind}"
        files[name] = work / f"llama-{kind}.gguf"
        if not files[name].exists():
            command = quantize_command(base, files[name], kind, arguments.threads, imatrix)
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--calibration-chunks", type=int, default=32)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--peers", nargs="*", default=["q2_0"], choices=FILE_TYPES, help="llama.cpp's types")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    files = made(arguments)
    options = ["--text", arguments.text, "--chunks", arguments.chunks, "--threads", arguments.threads, "--json"]
    found = json.loads(tritgguf("eval", *files.values(), "--against", arguments.work / "base.gguf", *options))
    rows = {name: {key: file[key] for key in FIGURES} for name, file in zip(files, found["files"], strict=True)}
    rows["f16"] = {key: found["base"][key] for key in FIGURES}
    for name, row in rows.items():
        values = [f"{row[key]:.3f}" if row[key] is not None else "" for key in FIGURES[:3]]
        top = "" if row["same_top1"] is None else f"{100 * row['same_top1']:.1f}"
        print(f"| {name} | {' | '.join(values)} | {top} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"chunks": arguments.chunks, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
