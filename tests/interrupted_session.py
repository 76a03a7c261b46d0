"""Evaluate tokens one by one, and again those that Ctrl-C interrupts: `MODEL TOKENS OUT`, for tests/ctrl_c.py.

Prints `step` after each step, and last the number of interrupted ones.
"""

from __future__ import annotations

import json
import signal
import sys

import numpy as np

import tritgguf.runtime

MIN_INTERRUPTS = 3
armed = False


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt where it is expected; a signal that comes elsewhere does nothing."""
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt


def evaluate(session: tritgguf.runtime.Session, tokens: list[int], found: list[np.ndarray]) -> None:
    """Append the logits after each of `tokens` for which `found` has none yet."""
    while len(found) < len(tokens):
        session.evaluate(tokens[: len(found) + 1])
        found.append(session.context.logits()[-1].copy())
        print("step", flush=True)


def main(model: str, tokens: list[int], out: str) -> None:
    global armed
    signal.signal(signal.SIGINT, interrupt)
    n_interrupts, found = 0, []
    with tritgguf.runtime.open(model, n_threads=1) as session:
        while len(found) < len(tokens):
            try:
                armed = True
                evaluate(session, tokens, found)
                armed = False
            except KeyboardInterrupt:
                n_interrupts += 1
            if len(found) == len(tokens) and n_interrupts < MIN_INTERRUPTS:
                found.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    np.save(out, np.array(found))
    print(n_interrupts)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
