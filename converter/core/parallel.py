"""Run independent pieces of work on several threads; kernels and numpy release the GIL while they work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tritgguf.converter.errors import UnsupportedError

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUED_PER_THREAD = 8  # bounds the memory of a model's millions of pieces


def n_threads(wanted: int | None) -> int:
    """Return the number of worker threads: `wanted`, or by default one per core that this process may use.

    Raise UnsupportedError if `wanted` is below 1.
    """
    if wanted is not None and wanted < 1:
        raise UnsupportedError(f"threads must be at least 1, found {wanted}")
    if wanted:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result]:
    """Yield `function(item)` for each item, in order; the first error, or Ctrl-C, cancels the calls not yet started.

    At most QUEUED_PER_THREAD items per thread are taken from `items` before their results are yielded.
    """
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(running) == QUEUED_PER_THREAD * threads:
                yield running.popleft().result()
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
