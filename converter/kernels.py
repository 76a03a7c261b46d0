"""Compiled loops: what numpy does in several passes over memory, numba does in one.

A kernel is a loop in plain Python that stands beside the numpy code it replaces and gives the same bytes. It is
compiled in a thread of its own when it is first wanted, and kept on disk for later runs (numba's cache: beside the
module, in the user's cache folder, or in NUMBA_CACHE_DIR). Until it is there numpy does the work, which it also does
where numba can't, and for models so small that loading the compiler would take longer.

The variable TRITGGUF_KERNELS overrides this: `numpy` never compiles, `compiled` waits for each kernel.
"""

from __future__ import annotations

import atexit
import importlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy.typing as npt

from tritgguf.converter.errors import UnsupportedError

VARIABLE = "TRITGGUF_KERNELS"
MODES = ("auto", "numpy", "compiled")
PATIENCE_SECONDS = 1.0  # in all: enough for what was kept on disk, so that numpy's threads don't hold its loading up
WORTH_BYTES = 200_000_000  # numpy reads as much in the time that it takes to load the compiler

Loop = Callable[..., int]
Argument = npt.NDArray[Any] | int | float


@dataclass
class Kernel:
    """A loop over contiguous arrays, some of which it fills; it returns an integer, of a meaning of its own.

    `fastmath` names what LLVM may assume of its floats.
    """

    loop: Loop
    fastmath: tuple[str, ...] = ()
    compiled: Loop | None = None
    wanted: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, *arguments: Argument) -> int | None:
        """Run the compiled loop and return its result; None where there is none (yet), and nothing was done."""
        how = mode()
        if self.compiled is None and how != "numpy":
            _compiler.want(self, arguments, waits=how == "compiled")
        if self.compiled is None or how == "numpy":
            return None
        return self.compiled(*arguments)


class _Compiler:
    """The thread that compiles, one kernel at a time."""

    def __init__(self) -> None:
        self.requests: SimpleQueue[tuple[Kernel, tuple[Argument, ...]] | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.failed: Exception | None = None
        self.lock = threading.Lock()
        self.patience = PATIENCE_SECONDS

    def start(self) -> None:
        with self.lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="kernels", daemon=True)
                self.thread.start()
                # A process that ends within machine code of a daemon thread may crash.
                atexit.register(self.stop)

    def stop(self) -> None:
        """Drop what hasn't begun to compile and wait for the rest."""
        if self.thread is not None:
            while not self.requests.empty():
                self.requests.get()
            self.requests.put(None)
            self.thread.join()

    def want(self, kernel: Kernel, arguments: tuple[Argument, ...], *, waits: bool) -> None:
        """Ask for a kernel that takes such arguments, unless that was done already; wait for it, at least a while."""
        if waits:
            self.start()
        if self.thread is None:
            return
        with self.lock:
            if not kernel.wanted:
                kernel.wanted = True
                self.requests.put((kernel, arguments))
        if waits:
            kernel.done.wait()
            if self.failed is not None:
                raise self.failed
        elif self.patience > 0:
            started = time.monotonic()
            kernel.done.wait(self.patience)
            self.patience -= time.monotonic() - started

    def _run(self) -> None:
        try:
            numba = importlib.import_module("numba")
        except Exception as error:  # a broken installation raises what it likes
            self.failed = error
        while (request := self.requests.get()) is not None:
            kernel, arguments = request
            try:
                if self.failed is None:
                    kernel.compiled = _compile(numba, kernel, arguments)
            except Exception as error:  # numpy goes on
                self.failed = error
            kernel.done.set()


def _compile(numba: Any, kernel: Kernel, arguments: tuple[Argument, ...]) -> Loop:  # noqa: ANN401
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(kernel.fastmath)}
    types = tuple(numba.typeof(argument) for argument in arguments)
    try:
        compiled = numba.njit(cache=True, **options)(kernel.loop)
    except RuntimeError:  # no folder to keep it in
        compiled = numba.njit(**options)(kernel.loop)
    compiled.compile(types)
    result: Loop = compiled
    return result


_compiler = _Compiler()


def mode() -> str:
    """Return how kernels are used; raise UnsupportedError where the variable says something else."""
    chosen = os.environ.get(VARIABLE, MODES[0])
    if chosen not in MODES:
        raise UnsupportedError(f"{VARIABLE} is {chosen!r}; expected one of {', '.join(MODES)}")
    return chosen


def prepare(n_bytes: int) -> None:
    """Say that so many bytes of weights are going to be read: the compiler is loaded if that is worth its time."""
    if mode() == "auto" and n_bytes >= WORTH_BYTES:
        _compiler.start()
