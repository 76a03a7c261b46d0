"""Run independent pieces of work on several threads; kernels and numpy let go of the interpreter lock meanwhile."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tritgguf.converter.errors import UnsupportedError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 8  # pieces per thread that are handed out at once, so that a model's millions don't all wait in memory


def n_threads(wanted: int | None) -> int:
    """Return the number of worker threads: as asked, else one per core this process may use."""
    if wanted is not None and wanted < 1:
        raise UnsupportedError(f"threads must be at least 1, found {wanted}")
    if wanted:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result]:
    """Yield `function` of each item, in order; the first error or Ctrl-C drops what hasn't started."""
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(running) == AHEAD * threads:
                yield running.popleft().result()
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
