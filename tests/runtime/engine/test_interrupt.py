"""Ctrl-C during native work: it stops soon, and the session stays right."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import tritgguf.runtime
from tests.ctrl_c import ctrl_c_in_callback, evaluate_under_ctrl_c
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.engine.interrupt import interruptible
from tritgguf.runtime.engine.placement import Placement

N_TOKENS = 1024  # two batches of a session


@pytest.fixture(scope="module")
def long_model(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("long") / "long.gguf", n_ctx_train=100_000)


def test_a_native_call_is_stopped_in_the_middle(long_model):
    tokens = [number % 256 for number in range(N_TOKENS)]
    with Model(long_model, placement=Placement(0)) as model:
        context = Context(model, n_ctx=N_TOKENS, n_threads=1, n_batch=N_TOKENS)
        with ctrl_c_in_callback(None) as whole:
            context.decode(tokens, 0)
        context.keep(0)
        assert whole.n_calls > 20
        with pytest.raises(KeyboardInterrupt), ctrl_c_in_callback(10) as stopped:
            context.decode(tokens, 0)
        assert stopped.n_calls < whole.n_calls / 2
        context.close()


def test_a_session_is_right_after_an_interrupted_prompt(long_model):
    prompt = [number * number % 256 for number in range(N_TOKENS)]
    with tritgguf.runtime.open(long_model, n_ctx=N_TOKENS + 100, n_threads=1) as fresh:
        with ctrl_c_in_callback(None) as whole:
            list(fresh.generate(prompt, temperature=0, max_tokens=1))
        expected = list(fresh.generate(prompt[::-1][:300], temperature=0, max_tokens=10))
        expected_prefix = list(fresh.generate(prompt[:300], temperature=0, max_tokens=10))
    with tritgguf.runtime.open(long_model, n_ctx=N_TOKENS + 100, n_threads=1) as session:
        generation = session.generate(prompt, temperature=0)
        with pytest.raises(KeyboardInterrupt), ctrl_c_in_callback(whole.n_calls * 3 // 4):
            next(generation)
        assert generation.finish == "interrupted"
        assert list(session.generate(prompt[:300], temperature=0, max_tokens=10)) == expected_prefix
        assert session.stats.n_cached == 299  # the batch that was evaluated before Ctrl-C is still of use
        assert list(session.generate(prompt[::-1][:300], temperature=0, max_tokens=10)) == expected


@pytest.mark.usefixtures("unmeasured")
def test_a_step_that_ctrl_c_interrupted_can_be_taken_again(long_model, tmp_path):
    tokens = [number * number % 256 for number in range(300)]
    assert evaluate_under_ctrl_c(long_model, tokens, tmp_path / "logits.npy") >= 3
    with tritgguf.runtime.open(long_model, n_threads=1) as undisturbed:
        for logits, n_tokens in zip(np.load(tmp_path / "logits.npy"), range(1, len(tokens) + 1), strict=True):
            undisturbed.evaluate(tokens[:n_tokens])
            expected = undisturbed.context.logits()[-1]
            assert np.allclose(logits, expected, rtol=0, atol=1e-3 * np.abs(expected).max()), n_tokens


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
