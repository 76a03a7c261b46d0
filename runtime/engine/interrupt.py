"""Handle Ctrl-C (SIGINT), SIGTERM and SIGHUP while native code runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass
class Interrupt:
    """The exception that a signal handler raised since the block was entered."""

    error: BaseException | None = None

    @property
    def requested(self) -> bool:
        return self.error is not None


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Delay exceptions of signal handlers, usually KeyboardInterrupt, until the end of the block.

    Python runs a signal's handler before the next bytecode. During native work that is in a ctypes callback, where
    ctypes swallows exceptions; so the callback checks `requested` and stops the work instead.
    """
    interrupt = Interrupt()
    replaced = {}
    if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                replaced[number] = signal.signal(number, _delaying(handler, interrupt))
    try:
        yield interrupt
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
    if interrupt.error is not None:
        raise interrupt.error


def _delaying(
    handler: Callable[[int, FrameType | None], object], interrupt: Interrupt
) -> Callable[[int, FrameType | None], None]:
    def run(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            interrupt.error = error

    return run
