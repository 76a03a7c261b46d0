"""Tokens per second of GGUF files, prompts (pp) and generation (tg) as llama-bench names and measures them.

All files take turns in every round, so what else the machine does hits them alike. As in llama-bench, tokens are random
and nothing is sampled: the rate is that of the model, not of a conversation.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritgguf.converter.core.progress import Progress, Step, counted
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.backend import VERSION, Model
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.engine.hardware import busy_seconds, default_threads
from tritgguf.runtime.engine.placement import ANYWHERE, Placement
from tritgguf.runtime.measure.file_size import FileSize, file_size

SEED = 0
SWEEP_PROMPT, SWEEP_TOKENS, SWEEP_ROUNDS = 32, 8, 3
# A second thread must bring at least this much, or it only takes a core from others.
WORTH_A_THREAD = 1.05


@dataclass(frozen=True)
class Test:
    """A prompt of so many tokens, or as many generated ones."""

    n_tokens: int
    generates: bool

    @property
    def name(self) -> str:
        """llama-bench's name, such as pp512 or tg128."""
        return f"{'tg' if self.generates else 'pp'}{self.n_tokens}"

    def run(self, context: Context, ids: Sequence[int]) -> None:
        """Evaluate the first `n_tokens` of `ids` in an empty context, a batch or one token at a time."""
        context.keep(0)
        size = 1 if self.generates else context.n_batch
        for start in range(0, self.n_tokens, size):
            context.decode(ids[start : min(start + size, self.n_tokens)], start)
            if self.generates:
                context.wait()
        context.wait()


@dataclass
class Series:
    """The runs of one test of one file with one setting: their tokens per second."""

    path: Path
    size: FileSize
    test: Test
    threads: int
    batch: int
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "file_bytes": self.size.file_bytes,
            "bits_per_weight": self.size.bits_per_weight,
            "test": self.test.name,
            "prompt_tokens": 0 if self.test.generates else self.test.n_tokens,
            "generated_tokens": self.test.n_tokens if self.test.generates else 0,
            "threads": self.threads,
            "batch": self.batch,
            "tokens_per_second": self.median,
            "min": min(self.rates),
            "max": max(self.rates),
            "samples": self.rates,
        }


@dataclass(frozen=True)
class Bench:
    """All series, those of one setting next to each other, and what the rates depend on.

    `sweep` holds the seconds by number of threads that the default was chosen by; None where threads were given.
    `others` is how many cores other programs kept busy meanwhile, where the system tells it.
    """

    series: tuple[Series, ...]
    sweep: dict[int, float] | None
    others: float | None

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": [series.as_json() for series in self.series],
            "seconds_by_threads": self.sweep,
            "cores_busy_with_others": self.others,
            "llama_cpp_python": VERSION,
        }


def bench(
    files: Sequence[Path],
    *,
    prompt_tokens: Sequence[int] = (512,),
    generate: Sequence[int] = (128,),
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (512,),
    repeat: int = 5,
    placement: Placement = ANYWHERE,
    progress: Progress | None = None,
) -> Bench:
    """Measure every file with each number of `threads` and each size of a prompt's `batches`, `repeat` times.

    `prompt_tokens` and `generate` are the lengths of the tests. `threads` is by default the number with which the first
    file is fastest here, at most the number of physical performance cores: see fastest_threads(). Before each run
    one token is evaluated untimed, so that caches hold what they can of this file. `progress` is called with
    "measuring", the tokens done and the total. EngineError if a file can't be loaded or a test is longer than the
    context that it was trained for.
    """
    tests = [Test(n, False) for n in prompt_tokens] + [Test(n, True) for n in generate]
    n_ctx = max(test.n_tokens for test in tests)
    sizes = [file_size(path) for path in files]
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(_opened(path, n_ctx, placement)) for path in files]
        contexts = {
            (number, batch): stack.enter_context(contextlib.closing(_context(model, n_ctx, batch)))
            for number, model in enumerate(models)
            for batch in batches
        }
        ids = [_random_ids(model, n_ctx) for model in models]
        sweep = None if threads else fastest_threads(contexts[0, batches[0]], ids[0])
        turns = [
            (Series(path, size, test, n_threads, batch), contexts[number, batch], ids[number])
            for test in tests
            for n_threads in threads or [_fewest(sweep or {})]
            for batch in (batches if not test.generates else batches[:1])
            for number, (path, size) in enumerate(zip(files, sizes, strict=True))
        ]
        step = counted(progress, "measuring", sum(t[0].test.n_tokens for t in turns) * (repeat + 1))
        before = time.perf_counter(), _others_seconds()
        _measure(turns, repeat, step)
        after = time.perf_counter(), _others_seconds()
    others = None
    if before[1] is not None and after[1] is not None:
        others = max(0.0, after[1] - before[1]) / (after[0] - before[0])
    return Bench(tuple(series for series, _, _ in turns), sweep, others)


def _others_seconds() -> float | None:
    """Return the processor time that other programs have used, where the system tells it."""
    busy = busy_seconds()
    return None if busy is None else busy - time.process_time()


def _measure(turns: Sequence[tuple[Series, Context, Sequence[int]]], repeat: int, step: Step) -> None:
    """Run each series once untimed, then `repeat` rounds of all, each in the opposite order of the one before."""
    for number in range(repeat + 1):
        for series, context, ids in turns if number % 2 == 0 else reversed(turns):
            context.set_threads(series.threads)
            Test(1, True).run(context, ids)
            seconds = timed(lambda series=series, context=context, ids=ids: series.test.run(context, ids))  # type: ignore[misc]
            if number > 0:
                series.rates.append(series.test.n_tokens / seconds)
            step(series.test.n_tokens)


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fastest_threads(context: Context, ids: Sequence[int]) -> dict[int, float]:
    """Return the median seconds of a short prompt and a short generation by number of threads.

    Tried are the physical performance cores that this process may use, and half, a quarter … of them down to one: on a
    machine that others use too, fewer may be faster, since threads wait for the slowest.
    """
    tests = Test(min(SWEEP_PROMPT, len(ids)), False), Test(min(SWEEP_TOKENS, len(ids)), True)
    candidates = [default_threads()]
    while candidates[-1] > 1:
        candidates.append(candidates[-1] // 2)

    def work() -> None:
        for test in tests:
            test.run(context, ids)

    seconds: dict[int, list[float]] = {n_threads: [] for n_threads in candidates}
    for _ in range(SWEEP_ROUNDS):
        for n_threads in candidates:
            context.set_threads(n_threads)
            Test(1, True).run(context, ids)
            seconds[n_threads].append(timed(work))
    return {n_threads: statistics.median(values) for n_threads, values in seconds.items()}


def _fewest(sweep: dict[int, float]) -> int:
    """Return the smallest number of threads that is about as fast as the fastest."""
    best = min(sweep.values())
    return min(n_threads for n_threads, seconds in sweep.items() if seconds <= WORTH_A_THREAD * best)


def _opened(path: Path, n_ctx: int, placement: Placement) -> Model:
    model = Model(path, placement=placement, cache_tokens=n_ctx)
    if n_ctx > model.n_ctx_train:
        model.close()
        raise EngineError(
            f"{path}: was trained for a context of {model.n_ctx_train} tokens, the longest test has {n_ctx}; "
            "choose shorter ones with --prompt-tokens and --generate"
        )
    return model


def _context(model: Model, n_ctx: int, batch: int) -> Context:
    return Context(model, n_ctx=n_ctx, n_threads=default_threads(), n_batch=batch)


def _random_ids(model: Model, n_tokens: int) -> list[int]:
    """Return random token ids, after BOS where the vocabulary wants it, as llama-bench does."""
    chosen = random.Random(SEED)
    vocab = model.vocab
    ids = [chosen.randrange(vocab.n_tokens) for _ in range(n_tokens)]
    return [vocab.bos, *ids[1:]] if vocab.add_bos and vocab.bos is not None else ids
