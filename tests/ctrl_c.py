"""Ctrl-C during native work, at moments that a busy machine can't shift into another test."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.paths import ROOT
from tritgguf.runtime.engine.context import Context


@dataclass
class Callbacks:
    """How often llama.cpp has called the function that tells it whether to stop."""

    n_calls: int = 0


@contextmanager
def ctrl_c_in_callback(number: int | None) -> Iterator[Callbacks]:
    """Count llama.cpp's calls of the function that tells it whether to stop, and press Ctrl-C in call `number`.

    The signal is raised and handled within that call, on this thread, so it is neither early nor late.
    """
    counted = Callbacks()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        of_decode = frame.f_back is not None and frame.f_back.f_code is Context._decode_until_interrupted.__code__
        if event == "call" and of_decode and frame.f_code.co_name == "<lambda>":
            counted.n_calls += 1
            if counted.n_calls == number:
                signal.raise_signal(signal.SIGINT)

    handler, profiler = signal.signal(signal.SIGINT, signal.default_int_handler), sys.getprofile()
    sys.setprofile(profile)
    try:
        yield counted
    finally:
        sys.setprofile(profiler)
        signal.signal(signal.SIGINT, handler)


def evaluate_under_ctrl_c(model: Path, tokens: Sequence[int], out: Path, seed: int = 0) -> int:
    """Evaluate `tokens` one by one in a child process that gets Ctrl-C at most once a token, at random moments.

    The child (tests/interrupted_session.py) writes the logits after each token to `out`, an .npy file. Returns how many
    steps were interrupted, at least 3.
    """
    random_delay = random.Random(seed)
    command = [sys.executable, "-m", "tests.interrupted_session", str(model), json.dumps(list(tokens)), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        last = ""
        for last in child.stdout:  # a line for each step
            if last == "step\n":
                time.sleep(random_delay.uniform(0, 0.002))
                child.send_signal(signal.SIGINT)
    assert child.returncode == 0, f"exit code {child.returncode}, seed {seed}"
    return int(last)
