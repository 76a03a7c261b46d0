"""Ctrl-C while native code runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed since the block was entered."""

    requested: bool = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """A flag that Ctrl-C sets while native code runs; KeyboardInterrupt follows when the block ends.

    Python raises KeyboardInterrupt in whatever bytecode runs next, which during native work is a ctypes callback, and
    ctypes swallows exceptions there. A handler that only sets a flag lets the callback stop the work. Handlers that an
    application installed itself are left alone.
    """
    interrupt = Interrupt()
    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )

    def request(_signal: int, _frame: object) -> None:
        interrupt.requested = True

    if mine:
        signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupt.requested:
        raise KeyboardInterrupt
