"""What `tritgguf bench` costs beyond llama_cpp itself: python -m tests.bench.bench_overhead FILE.gguf [...]

Both ways take turns on one file in one process, each with a context of its own and the same settings: the engine's
Context as `bench` uses it, and llama_decode with llama_batch_get_one as llama-bench does it, called through ctypes. A
ratio is the median of the ratios within each turn: of the time that passed, and of the processor time, which other
programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_cpp import llama_cpp as native

from tests.bench.measure import machine
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.measure.bench import Test

RESULT = Path(__file__).parent / "results" / "bench-overhead.json"


class Bare:
    """A context of llama_cpp's, without anything around it."""

    def __init__(self, model: Model, n_ctx: int, n_threads: int) -> None:
        params = native.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_outputs_max = 64
        params.n_threads = params.n_threads_batch = n_threads
        params.swa_full = True
        self.handle = native.llama_init_from_model(model.handle, params)

    def run(self, test: Test, ids: Sequence[int]) -> None:
        native.llama_memory_clear(native.llama_get_memory(self.handle), False)
        size = 1 if test.generates else test.n_tokens
        for start in range(0, test.n_tokens, size):
            tokens = (native.llama_token * size)(*ids[start : start + size])
            if native.llama_decode(self.handle, native.llama_batch_get_one(tokens, size)):
                raise RuntimeError("llama_decode failed")
            native.llama_synchronize(self.handle)


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Return how long a call takes, and how much processor time."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def median(values: Sequence[tuple[float, float]], clock: int) -> float:
    return statistics.median(value[clock] for value in values)


def compare(path: Path, tests: Sequence[Test], repeat: int, n_threads: int) -> list[dict[str, object]]:
    """Return, for each test, the medians in tokens per second and their ratio."""
    rows: list[dict[str, object]] = []
    n_ctx = max(test.n_tokens for test in tests)
    with Model(path) as model:
        ids = [number % model.vocab.n_tokens for number in range(7, 7 + n_ctx)]
        ours = Context(model, n_ctx=n_ctx, n_threads=n_threads, n_batch=n_ctx)
        bare = Bare(model, n_ctx, n_threads)
        for test in tests:
            ways = {"engine": lambda test=test: test.run(ours, ids), "bare": lambda test=test: bare.run(test, ids)}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for number in range(repeat + 1):
                for name in ways if number % 2 else reversed(ways):
                    took = seconds(ways[name])
                    if number:  # the first turn warms up
                        times[name].append(took)
            rates = {f"{name}_tokens_per_second": test.n_tokens / median(times[name], 0) for name in ways}
            ratios = {
                name: statistics.median(one[clock] / other[clock] for one, other in zip(*times.values(), strict=True))
                for clock, name in enumerate(("time_ratio", "processor_time_ratio"))
            }
            rows.append({"file": path.name, "test": test.name, "threads": n_threads, **rates, **ratios})
            print(json.dumps(rows[-1]), flush=True)
        ours.close()
        native.llama_free(bare.handle)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    before = machine()
    tests = [Test(arguments.prompt, False), Test(arguments.generate, True)]
    rows = [row for path in arguments.files for row in compare(path, tests, arguments.repeat, arguments.threads)]
    if arguments.save:
        RESULT.write_text(json.dumps({"machine": before, "repeat": arguments.repeat, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
