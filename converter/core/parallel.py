"""Run independent pieces of work on several threads; kernels and numpy release the GIL while they work.

Calls and results go through SimpleQueues and not through concurrent.futures: a signal handler that raises, as that of
Ctrl-C does, may leave a Future's lock locked, and the thread that sets its result then waits forever (2 of 1,132 runs
that a signal stopped while they did many small pieces). A SimpleQueue takes and gives in one call of C.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

from tritgguf.converter.errors import UnsupportedError

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUED_PER_THREAD = 8  # bounds the memory of a model's millions of pieces


class Call(Generic[Result]):
    """A call that another thread makes."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._answers: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        """Make the call, on the other thread."""
        try:
            self._answers.put((self._function(), None))
        except BaseException as error:
            self._answers.put((None, error))

    @property
    def done(self) -> bool:
        """Whether `result` is there."""
        return not self._answers.empty()

    def result(self) -> Result:
        """Wait for the call and return its result, or raise its error; may be called once."""
        value, error = self._answers.get()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


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
    calls: SimpleQueue[Call[Result] | None] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    cancelled = False

    def work() -> None:
        while (call := calls.get()) is not None and not cancelled:
            call.run()
        ended.put(None)

    running: deque[Call[Result]] = deque()
    n_started = 0
    try:
        for item in items:
            if len(running) == QUEUED_PER_THREAD * threads:
                yield running.popleft().result()
            running.append(Call(partial(function, item)))
            calls.put(running[-1])
            if n_started < threads:
                Thread(target=work, daemon=True).start()  # daemon: Python waits for others when it ends
                n_started += 1
        while running:
            yield running.popleft().result()
    finally:
        cancelled = True
        for _ in range(threads):
            calls.put(None)
        for _ in range(n_started):
            ended.get()


@contextmanager
def background(function: Callable[[], Result]) -> Iterator[Call[Result]]:
    """Make a call on another thread meanwhile, and wait for its end at the end of the block."""
    call, ended = Call(function), SimpleQueue[None]()

    def work() -> None:
        call.run()
        ended.put(None)

    Thread(target=work, daemon=True).start()
    try:
        yield call
    finally:
        ended.get()
