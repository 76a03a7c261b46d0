"""Whole models by our CPU kernels and by llama.cpp's own: python -m tests.bench.kernels_models FOLDER [--help]

Models of Llama 1.1B's and BitNet 2B-4T's shapes with random trits, as TQ2_0, TQ1_0 and Q2_0 by both kernels, and as
Q4_0 and Q2_K, the smallest types that llama.cpp repacks for this processor. In each round every one of them runs once,
each in a process of its own, so that other work on the machine hits all alike; figures are medians over the rounds.

llama.cpp's own code multiplies ternary weights token by token, so its prompts are shorter: the rate is the same, and
Q2_0, which it computes without vector instructions, would take minutes. Five rounds with one and two threads take about
20 minutes on two cores; needs 11 GB of disk, nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import bitnet_2b4t
from tests.bench.measure import machine
from tests.bench.shapes import SHAPES, Shape, write_checkpoint

RESULTS = Path(__file__).parent / "results" / "kernels-models.json"
MODELS = ("1.1B", "2B-4T")
TERNARY, PEERS = ("tq2_0", "tq1_0", "q2_0"), ("q4_0", "q2_k")
OURS, STOCK = "auto", "stock"  # TRITGGUF_CPU_KERNELS
SLOW = ("q2_0", STOCK)
TINY = Shape(512, 1536, 2, 8, 8)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and generated ones."""

    prompt: int
    generate: int


@dataclass
class Subject:
    """A model's file in a type, with one of the kernels; its rates by number of threads, tokens per second."""

    model: str
    type: str
    kernels: str
    path: Path
    lengths: Lengths
    n_multiply_adds: int  # of one token in the layers, without the output layer
    prompt: dict[int, list[float]] = field(default_factory=dict)
    generate: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} {self.type} {'stock' if self.kernels == STOCK else 'ours'}"


def files(folder: Path, model: str) -> tuple[dict[str, Path], int]:
    """Return the model's file in each type, made unless it is there, and the multiply-adds of a token in the layers."""
    from tritgguf.converter import convert

    source = folder / model
    if model == "2B-4T":
        if not (source / "model.safetensors").exists():
            bitnet_2b4t.write_checkpoint(source)
        n_weights = bitnet_2b4t.LAYERS * sum(rows * columns for rows, columns in bitnet_2b4t.LINEARS.values())
    else:
        shape = TINY if model == "tiny" else SHAPES["llama-1.1b"]
        write_checkpoint(source, shape, "bitnet")
        n_weights = shape.n_linear_weights
    paths = {name: folder / f"{model}-{name}.gguf" for name in (*TERNARY, *PEERS)}
    for name, path in paths.items():
        if not path.exists():
            convert(source, path, name, check=False)
    return paths, n_weights


def subjects(folder: Path, models: Sequence[str], lengths: Lengths, stock_prompt: int, slow: Lengths) -> list[Subject]:
    found = []
    stock = Lengths(stock_prompt, lengths.generate)
    for model in models:
        paths, n_weights = files(folder, model)
        for kind in TERNARY:
            found.append(Subject(model, kind, OURS, paths[kind], lengths, n_weights))
            of_stock = slow if (kind, STOCK) == SLOW else stock
            found.append(Subject(model, kind, STOCK, paths[kind], of_stock, n_weights))
        found += [Subject(model, kind, STOCK, paths[kind], lengths, n_weights) for kind in PEERS]
    return found


def run(subject: Subject, threads: Sequence[int]) -> dict[str, Any]:
    """Measure a subject once in a process of its own."""
    asked = {"path": str(subject.path), "threads": list(threads), **asdict(subject.lengths)}
    child = subprocess.run(
        [sys.executable, "-m", "tests.bench.kernels_models", "--child", json.dumps(asked)],
        env={**os.environ, "TRITGGUF_CPU_KERNELS": subject.kernels},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"{subject.name}: {child.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def child(asked: dict[str, Any]) -> None:
    """Print the rates of one file, for each number of threads, as JSON."""
    from tritgguf.runtime.engine.backend import Model, cpu_kernels
    from tritgguf.runtime.engine.context import Context
    from tritgguf.runtime.measure.bench import Test, timed

    tests = {"prompt": Test(asked["prompt"], False), "generate": Test(asked["generate"], True)}
    ids = [number % 1000 + 10 for number in range(asked["prompt"] + asked["generate"])]
    found: dict[str, Any] = {"kernels": str(cpu_kernels()), "prompt": {}, "generate": {}}
    with Model(Path(asked["path"])) as model:
        context = Context(model, n_ctx=max(64, len(ids)), n_threads=1, n_batch=512)
        for n_threads in asked["threads"]:
            context.set_threads(n_threads)
            Test(2, True).run(context, ids)  # reads the file, and starts the threads
            for name, test in tests.items():
                found[name][n_threads] = test.n_tokens / timed(lambda test=test: test.run(context, ids))
        context.close()
    print(json.dumps(found))


def measure(everyone: Sequence[Subject], threads: Sequence[int], rounds: int, minutes: float) -> Iterator[int]:
    """Run all in turn, each round in the opposite order of the one before; yield after each round its number.

    No round begins that wouldn't end within `minutes`.
    """
    begun = time.monotonic()
    for number in range(1, rounds + 1):
        started = time.monotonic()
        for subject in everyone if number % 2 else reversed(everyone):
            found = run(subject, threads)
            for name, rates in (("prompt", subject.prompt), ("generate", subject.generate)):
                for n_threads in threads:
                    rates.setdefault(n_threads, []).append(found[name][str(n_threads)])
            kernels = "llama.cpp's own" if subject.kernels == STOCK else "tritgguf's"
            if not found["kernels"].startswith(kernels):
                raise RuntimeError(f"{subject.name}: {found['kernels']}; expected {kernels}")
        yield number
        if time.monotonic() - begun + time.monotonic() - started > 60 * minutes:
            return


def rows(everyone: Sequence[Subject], threads: Sequence[int]) -> list[dict[str, Any]]:
    """Return the medians; the ratios are those within each round to stock's code for the same file."""
    stock = {(subject.model, subject.type): subject for subject in everyone if subject.kernels == STOCK}
    return [
        {
            "model": subject.model,
            "type": subject.type,
            "kernels": "stock" if subject.kernels == STOCK else "ours",
            "file_bytes": subject.path.stat().st_size,
            "threads": n_threads,
            **_figures("prompt", subject, stock[subject.model, subject.type], n_threads),
            **_figures("generate", subject, stock[subject.model, subject.type], n_threads),
        }
        for subject in everyone
        for n_threads in threads
    ]


def _figures(name: str, subject: Subject, stock: Subject, n_threads: int) -> dict[str, Any]:
    rates, theirs = getattr(subject, name)[n_threads], getattr(stock, name)[n_threads]
    median = statistics.median(rates)
    return {
        f"{name}_tokens": getattr(subject.lengths, name),
        f"{name}_rate": round(median, 2),
        f"{name}_samples": [round(rate, 2) for rate in rates],
        f"{name}_gmacs_per_core": round(median * subject.n_multiply_adds / n_threads / 1e9, 1),
        f"{name}_to_stock": round(statistics.median(own / other for own, other in zip(rates, theirs, strict=True)), 2),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    titles = ("model", "type", "kernels", "threads", "prompt", "tokens/s", "10⁹ per core", "to stock")
    lines = [f"| {' | '.join((*titles, 'generated', 'tokens/s', 'to stock'))} |", "|---" * 11 + "|"]
    for row in found:
        cells = [row[name] for name in ("model", "type", "kernels", "threads")]
        for name in ("prompt", "generate"):
            cells += [row[f"{name}_tokens"], row[f"{name}_rate"]]
            cells += [row["prompt_gmacs_per_core"]] if name == "prompt" else []
            cells.append(row[f"{name}_to_stock"] if row["kernels"] == "ours" else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the models' files, which are kept")
    parser.add_argument("--models", nargs="+", choices=(*MODELS, "tiny"), default=MODELS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="begin no round that wouldn't end by then")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--stock-prompt", type=int, default=128, help="of ternary types with llama.cpp's own code")
    parser.add_argument("--slow-prompt", type=int, default=8, help="of Q2_0 with llama.cpp's own code")
    parser.add_argument("--slow-generate", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    lengths, slow = Lengths(asked.prompt, asked.generate), Lengths(asked.slow_prompt, asked.slow_generate)
    everyone = subjects(asked.folder, asked.models, lengths, asked.stock_prompt, slow)
    before = machine()
    for number in measure(everyone, asked.threads, asked.rounds, asked.minutes):
        found = {"machine": before, "rounds": number, "rows": rows(everyone, asked.threads)}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"round {number}, {time.strftime('%H:%M:%S')}", flush=True)
    print(table(rows(everyone, asked.threads)))


if __name__ == "__main__":
    main()
