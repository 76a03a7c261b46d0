"""Where a conversion's time goes: python -m tests.bench.stages MODEL OUT [--type tq2_0] [--method absmean]

Each run is a process of its own, whose stages are timed one after the other; what its threads do while it writes is
added up over the threads. Prints medians, and keeps them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import measure

RESULTS = Path(__file__).parent / "results"
STAGES = ("start Python and import", "open, read the tokenizer", "plan", "write", "fsync", "end")


def measured(model: str, out: str, kind: str, method: str, started: float) -> None:
    """Convert in this process, which began at `started`, and print what took how long as JSON."""
    from tritgguf.converter.conversion import pipeline, writer
    from tritgguf.converter.core import kernels, system, tensors

    found: dict[str, float] = defaultdict(float)
    lock = threading.Lock()

    def timed(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.monotonic()
            try:
                return function(*arguments, **options)
            finally:
                with lock:
                    found[name(*arguments)] += time.monotonic() - start

        return run

    def stage(module: Any, function: str, name: str) -> None:
        setattr(module, function, timed(getattr(module, function), lambda *_: name))

    found["start Python and import"] = time.monotonic() - started
    stage(pipeline, "open_model", "open, read the tokenizer")
    stage(pipeline, "make_plan", "plan")
    stage(pipeline, "write_tensors", "write")
    stage(pipeline, "check_token_ids", "threads: token ids are compared")
    stage(os, "fsync", "fsync")
    for module in (tensors, system):
        stage(module, "advise", "threads: files are mapped and let go of")
    stage(writer, "write_at", "threads: written into the system's cache")
    kernels.Kernel.__call__ = timed(kernels.Kernel.__call__, lambda kernel, *_: f"threads: kernel {kernel.name}")
    pipeline.convert(model, out, kind, method)
    print(json.dumps({**found, "ended": time.monotonic()}))


def once(arguments: argparse.Namespace) -> dict[str, float]:
    arguments.out.unlink(missing_ok=True)
    measure.settle()
    started = time.monotonic()
    words = [arguments.model, arguments.out, "--type", arguments.type, "--method", arguments.method]
    command = [sys.executable, "-m", "tests.bench.stages", *words, "--started", started]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    printed = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, float] = json.loads(printed)
    ended, found["all"] = found.pop("ended"), time.monotonic() - started
    found["end"] = started + found["all"] - ended
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="tq2_0")
    parser.add_argument("--method", default="absmean")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.started is not None:
        measured(str(arguments.model), str(arguments.out), arguments.type, arguments.method, arguments.started)
        return
    described = measure.machine()
    runs = [once(arguments) for _ in range(arguments.runs + 1)][1:]
    names = sorted({name for run in runs for name in run})
    medians = {name: round(statistics.median(run.get(name, 0) for run in runs), 3) for name in names}
    stages = {name: medians.pop(name) for name in (*STAGES, "all")}
    threads = {name.removeprefix("threads: "): medians[name] for name in sorted(medians, key=medians.__getitem__)[::-1]}
    for title, figures in (("seconds", stages), ("seconds of threads", threads)):
        print(title)
        print(*(f"  {name:44} {value:6.3f}" for name, value in figures.items()), sep="\n")
    RESULTS.mkdir(exist_ok=True)
    name = f"stages-{arguments.model.name}-{arguments.type}-{arguments.method}.json"
    text = json.dumps({"machine": described, "stages": stages, "threads": threads}, indent=1)
    (RESULTS / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
