"""Ctrl-C during native work: it stops soon, and the session stays right."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

import tritgguf.runtime
from tritgguf.runtime.engine.backend import Context, Model
from tritgguf.runtime.engine.interrupt import interruptible

pytestmark = pytest.mark.usefixtures("uncollected")
N_TOKENS = 4096


class CtrlC:
    """Sends SIGINT to this process; a signal that comes when it isn't armed is ignored, not raised."""

    def __init__(self):
        self.armed, self.timers = False, []

    def handle(self, *_):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def press(self, seconds):
        self.timers.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)))
        self.armed = True
        self.timers[-1].start()

    def stop(self):
        self.armed = False
        for timer in self.timers:
            timer.cancel()
            if timer.ident is not None:
                timer.join()


@pytest.fixture
def ctrl_c():
    sender = CtrlC()
    before = signal.signal(signal.SIGINT, sender.handle)
    yield sender
    sender.stop()
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def long_model(make_model, tmp_path):
    return make_model(tmp_path / "long.gguf", n_ctx_train=100_000)


def test_a_native_call_is_stopped_in_the_middle(long_model, ctrl_c):
    tokens = [number % 256 for number in range(N_TOKENS)]
    with Model(long_model) as model:
        context = Context(model, n_ctx=N_TOKENS, n_threads=1, n_batch=N_TOKENS)
        start = time.perf_counter()
        context.decode(tokens, 0)
        whole_seconds = time.perf_counter() - start
        context.keep(0)
        ctrl_c.press(whole_seconds / 20)
        with pytest.raises(KeyboardInterrupt):
            context.decode(tokens, 0)
        context.close()


def test_a_session_is_right_after_an_interrupted_prompt(long_model, ctrl_c):
    prompt = [number * number % 256 for number in range(N_TOKENS)]
    with tritgguf.runtime.open(long_model, n_ctx=N_TOKENS + 100, n_threads=1) as session:
        generation = session.generate(prompt, temperature=0)
        ctrl_c.press(0.1)
        with pytest.raises(KeyboardInterrupt):
            next(generation)
        assert generation.finish == "interrupted"
        after = list(session.generate(prompt[:300], temperature=0, max_tokens=10))
        assert session.stats.n_cached == 299  # what was evaluated before Ctrl-C is still of use
    with tritgguf.runtime.open(long_model, n_threads=1) as fresh:
        assert list(fresh.generate(prompt[:300], temperature=0, max_tokens=10)) == after


def test_a_step_that_ctrl_c_interrupted_can_be_taken_again(long_model, ctrl_c):
    tokens = [number * number % 256 for number in range(1000)]
    n_interrupts, n_evaluated = 0, 0
    with tritgguf.runtime.open(long_model, n_threads=1) as session:
        while n_evaluated < len(tokens):
            try:
                ctrl_c.press(0.01)
                while n_evaluated < len(tokens):
                    session.evaluate(tokens[: n_evaluated + 1])
                    n_evaluated += 1
                ctrl_c.armed = False
            except KeyboardInterrupt:
                n_interrupts += 1
        assert n_interrupts >= 3
        logits = session.context.logits()[-1].copy()
    with tritgguf.runtime.open(long_model, n_threads=1) as undisturbed:
        for n_tokens in range(1, len(tokens) + 1):
            undisturbed.evaluate(tokens[:n_tokens])
        expected = undisturbed.context.logits()[-1]
        assert np.allclose(logits, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_applications_own_handler_runs_and_its_exception_comes_after_the_work(number):
    seen = []

    def handler(*_):
        seen.append("handler")
        if len(seen) > 2:
            raise LookupError("from the handler")

    def work():
        with interruptible() as interrupt:
            signal.raise_signal(number)
            seen.append("work goes on")
            assert interrupt.requested == (len(seen) > 3)

    before = signal.signal(number, handler)
    try:
        work()
        assert seen == ["handler", "work goes on"]
        with pytest.raises(LookupError, match="from the handler"):
            work()
        assert seen == ["handler", "work goes on"] * 2
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_pythons_handler_is_back_afterwards():
    def work():
        with interruptible() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.requested
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
