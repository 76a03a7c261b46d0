"""What each code for a file's products does to its predictions: tritgguf's kernels and llama.cpp's own, token by token.

`python -m tests.bench.kernels_divergence FILE BASE --text TEXT [--chunks 16] [--threads 1]`: BASE is the same weights
as F16 (`tritgguf convert FILE BASE --type f16`). Both codes are compared with its predictions, and with each other on
the same tokens. Each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tritgguf.runtime.engine import backend
from tritgguf.runtime.measure.base_logits import read_base
from tritgguf.runtime.measure.evaluation import Request, chunk_scores, evaluate
from tritgguf.runtime.measure.scores import joined

MODES = ("auto", "stock")
Values = npt.NDArray[np.float64]


def scored(file: Path, logits: Path, threads: int) -> npt.NDArray[np.float64]:
    """Return a row of divergences and one of ones where the likeliest token is the base's, a column for each token."""
    base = read_base(logits)
    with Request(threads=threads).open(file, base.chunks.n_ctx) as network:
        parts = [
            joined(list(chunk_scores(network, base.chunks, chunk, base.rows(chunk), threads)))
            for chunk in range(len(base.chunks))
        ]
    scores = joined(parts)
    assert scores.kld is not None
    assert scores.same_top1 is not None
    return np.stack([scores.kld, scores.same_top1]).astype(np.float64)


def in_mode(mode: str, arguments: argparse.Namespace, logits: Path, folder: Path) -> npt.NDArray[np.float64]:
    """Return `scored` of a process with this value of TRITGGUF_CPU_KERNELS."""
    out = folder / f"{mode}.npy"
    command = [sys.executable, "-m", "tests.bench.kernels_divergence", str(arguments.file), str(logits), "--child", out]
    environment = {**os.environ, "TRITGGUF_CPU_KERNELS": mode}
    subprocess.run([*command, "--threads", str(arguments.threads)], env=environment, check=True)
    return np.load(out)


def mean(values: Values, n_chunks: int) -> tuple[float, float]:
    """Return the mean and its standard error by chunks: what is rounded early in a chunk shifts all of its tokens."""
    of_chunks = values.reshape(n_chunks, -1).mean(axis=1)
    return float(of_chunks.mean()), float(of_chunks.std(ddof=1) / math.sqrt(n_chunks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("file", "base"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(backend.cpu_kernels(), file=sys.stderr)
        np.save(arguments.child, scored(arguments.file, arguments.base, arguments.threads))
        return
    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder) / "base.kld"
        options = {"text": arguments.text, "n_chunks": arguments.chunks, "threads": arguments.threads}
        evaluate([], against=arguments.base, base_logits=logits, **options)
        found = {mode: in_mode(mode, arguments, logits, Path(folder)) for mode in MODES}
        n_chunks = len(read_base(logits).chunks)
    report: dict[str, object] = {"n_chunks": n_chunks, "n_tokens": found["auto"].shape[1]}
    for mode, (divergences, same) in found.items():
        report[mode] = {
            "kld": mean(divergences, n_chunks),
            "kld_median": float(np.median(divergences)),
            "same_top1": float(same.mean()),
        }
    report["auto minus stock"] = {
        "kld": mean(found["auto"][0] - found["stock"][0], n_chunks),
        "same_top1": mean(found["auto"][1] - found["stock"][1], n_chunks),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
