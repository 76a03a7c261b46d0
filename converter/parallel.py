"""Run independent pieces of work on several threads; numpy lets go of the interpreter lock while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tritgguf.converter.errors import UnsupportedError

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_threads(wanted: int | None) -> int:
    """Return the number of worker threads: as asked, else one per core this process may use."""
    if wanted is not None and wanted < 1:
        raise UnsupportedError(f"threads must be at least 1, found {wanted}")
    if wanted:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield `function` of each item, in order; the first error or Ctrl-C drops what hasn't started."""
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
