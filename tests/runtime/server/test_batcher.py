"""Slots over one context, without threads: what is evaluated together, what is kept, what goes wrong."""

from __future__ import annotations

import time
from concurrent.futures import Future

import pytest

import tritgguf.runtime
from tests import checkpoints
from tritgguf.converter import convert
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.text_stream import TextStream
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.engine.sampler import Sampler
from tritgguf.runtime.engine.sampling import Sampling
from tritgguf.runtime.server.batcher import Batcher
from tritgguf.runtime.server.decode_thread import DecodeThread
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.job import Done, Failure, Job, Piece

CONTEXT = 256
PROMPTS = [[number * (seed + 3) % 256 for number in range(20 + 30 * seed)] for seed in range(5)]


class Slots:
    """A batcher and the events of its jobs."""

    def __init__(self, model: Model, n_slots: int) -> None:
        self.model = model
        self.context = Context(model, n_ctx=CONTEXT, n_threads=1, n_batch=64, n_sequences=n_slots)
        self.batcher = Batcher(model, self.context, CONTEXT)

    def job(self, prompt: list[int], *, limit: int = 24, deadline: float | None = None) -> tuple[Job, list]:
        events: list = []
        job = Job(
            prompt,
            Sampler(self.model.vocab, Sampling(temperature=0)),
            TextStream(),
            limit=limit,
            n_top=None,
            deadline=time.monotonic() + 1000 if deadline is None else deadline,
            sink=events.append,
        )
        self.batcher.waiting.append(job)
        return job, events

    def run(self) -> None:
        while self.batcher.has_work:
            self.batcher.step(lambda: False)


@pytest.fixture
def make_slots(random_model):
    opened = []
    with Model(random_model) as model:

        def make(n_slots: int) -> Slots:
            opened.append(Slots(model, n_slots))
            return opened[-1]

        yield make
        for slots in opened:
            slots.context.close()


@pytest.fixture(scope="module")
def alone(random_model):
    """The tokens that follow each prompt in a session of its own."""
    with tritgguf.runtime.open(random_model, n_ctx=CONTEXT, n_threads=1) as session:
        found = []
        for prompt in PROMPTS:
            tokens = list(prompt)
            for _ in range(24):
                session.evaluate(tokens)
                tokens.append(int(session.context.logits()[-1].argmax()))
            found.append(tokens)
        return found


@pytest.mark.parametrize("n_slots", [1, 3, 8])
def test_slots_give_the_tokens_of_single_sessions(make_slots, alone, n_slots):
    slots = make_slots(n_slots)
    jobs = [slots.job(prompt) for prompt in PROMPTS * 2]
    slots.run()
    for (job, events), expected in zip(jobs, alone * 2, strict=True):
        end = next((at for at in range(len(job.tokens) - 24, 0) if slots.model.vocab.is_end(expected[at])), None)
        assert job.tokens == expected[: len(job.tokens)], end
        assert isinstance(events[-1], Done)
    totals = slots.batcher.totals
    assert totals.requests == 10
    if n_slots > 1:
        assert totals.batches < totals.batch_tokens / 2


def test_a_prompt_begins_where_another_slots_cache_ends(make_slots):
    slots = make_slots(2)
    shared = PROMPTS[4][:100]
    first, _ = slots.job([*shared, 1, 2], limit=3)
    slots.run()
    second, _ = slots.job([*shared, 3, 4], limit=40)
    slots.batcher.step(lambda: False)
    third, _ = slots.job([*shared, 5, 6], limit=40)  # while the second holds the cache that it shares
    slots.run()
    assert (first.stats.n_cached, second.stats.n_cached, third.stats.n_cached) == (0, 100, 100)
    with tritgguf.runtime.open(slots.model.path, n_ctx=CONTEXT, n_threads=1) as session:
        for job in (second, third):
            again = session.generate(job.tokens[:102], temperature=0, max_tokens=40)
            assert "".join(again) == text_of(slots, job)


def text_of(slots: Slots, job: Job) -> str:
    return slots.model.vocab.detokenize(job.tokens[102:], special=False).decode("utf-8", "replace")


def test_a_cancelled_job_frees_its_slot_and_a_late_one_fails(make_slots):
    slots = make_slots(1)
    job, events = slots.job(PROMPTS[0], limit=1000)
    late, late_events = slots.job(PROMPTS[1], deadline=0.0)
    slots.batcher.step(lambda: False)
    assert slots.batcher.n_busy == 1
    assert isinstance(late_events[0], Failure)
    assert "longer than this server allows" in str(late_events[0].error)
    job.cancel()
    slots.batcher.step(lambda: False)
    assert slots.batcher.n_busy == 0
    assert job.sampler.handle is None
    assert late.sampler.handle is None
    assert not any(isinstance(event, Done) for event in events)


def test_a_batch_that_is_stopped_is_evaluated_again(make_slots, alone):
    slots = make_slots(2)
    jobs = [slots.job(prompt)[0] for prompt in PROMPTS[1:3]]
    calls = iter([True, *[False] * 10_000_000])
    slots.batcher.step(lambda: next(calls))
    assert slots.batcher.totals.batches == 0
    slots.run()
    for job, expected in zip(jobs, alone[1:3], strict=True):
        assert job.tokens == expected[: len(job.tokens)]


def test_an_error_of_a_batch_ends_its_jobs_only(make_slots, monkeypatch):
    slots = make_slots(2)
    jobs = [slots.job(prompt) for prompt in PROMPTS[:3]]

    def failing(*_: object) -> bool:
        raise EngineError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(slots.context, "decode_batch", failing)
        slots.batcher.step(lambda: False)
    slots.run()
    assert [isinstance(events[-1], Failure) for _, events in jobs] == [True, True, False]
    assert any(isinstance(event, Piece) for event in jobs[2][1])


def test_all_end_when_the_server_does(make_slots):
    slots = make_slots(1)
    jobs = [slots.job(prompt) for prompt in PROMPTS[:3]]
    slots.batcher.step(lambda: False)
    slots.batcher.fail_all(EngineError("the end"))
    assert all(str(events[-1].error) == "the end" for _, events in jobs)
    assert all(job.sampler.handle is None for job, _ in jobs)
    assert not slots.batcher.has_work


@pytest.mark.parametrize("name", ["gemma3", "qwen35", "qwen3moe"])
def test_sliding_layers_states_and_experts(tmp_path, name):
    """A sliding layer forgets, a linear attention's state can't be cut; answers stay those of single sessions."""
    checkpoint = checkpoints.build(name, tmp_path / "model")
    path = convert(checkpoint, tmp_path / "out.gguf", "f32", check=False).out
    prompts = [[(number * 7 + seed) % 200 + 3 for number in range(30 + 9 * seed)] for seed in range(3)]
    prompts.append([*prompts[2][:40], *prompts[1][:9]])  # begins as another
    with tritgguf.runtime.open(path, n_ctx=CONTEXT, n_threads=1) as session:
        alone = []
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(8):
                session.evaluate(tokens)
                tokens.append(int(session.context.logits()[-1].argmax()))
            alone.append(tokens)
    with Model(path) as model:
        slots = Slots(model, 2)
        jobs = [slots.job(prompt, limit=8)[0] for prompt in prompts * 2]
        slots.run()
        slots.context.close()
    for job, expected in zip(jobs, alone * 2, strict=True):
        assert len(job.tokens) > job.stats.n_prompt
        assert job.tokens == expected[: len(job.tokens)]


def test_a_queue_of_none_still_fills_the_slots(make_slots):
    slots = make_slots(2)
    jobs = [slots.job(prompt)[0] for prompt in PROMPTS[:3]]
    slots.batcher.waiting.clear()
    thread = DecodeThread([slots.batcher], max_waiting=0)
    thread.submit(slots.batcher, jobs[0])
    slots.batcher.step(lambda: False)
    thread.submit(slots.batcher, jobs[1])
    with pytest.raises(RequestError, match="0 requests wait already"):
        thread.submit(slots.batcher, jobs[2])
    jobs[2].sampler.close()
    slots.run()


def test_requests_for_embeddings_wait_in_the_queue_too(make_slots):
    slots = make_slots(1)
    thread = DecodeThread([slots.batcher], max_waiting=1)
    job, _ = slots.job(PROMPTS[0])
    slots.batcher.step(lambda: False)
    with thread.embedding(slots.batcher):  # is worked on between the batches
        assert slots.batcher.n_waiting == 0
        with thread.embedding(slots.batcher):  # waits
            for refused in (thread.embedding(slots.batcher).__enter__, lambda: thread.submit(slots.batcher, job)):
                with pytest.raises(RequestError, match="1 requests wait already") as caught:
                    refused()
                assert (caught.value.status, caught.value.code) == (503, "queue_full")
    assert slots.batcher.n_waiting == 0
    waiting, _ = slots.job(PROMPTS[1])
    with thread.embedding(slots.batcher), pytest.raises(RequestError, match="wait already"):
        thread.submit(slots.batcher, waiting)
    slots.run()


def test_all_calls_end_where_the_client_of_one_is_gone(make_slots):
    slots = make_slots(1)
    gone, waiting = Future(), Future()
    slots.batcher.calls += [(gone, int), (waiting, int)]
    assert gone.cancel()
    slots.batcher.fail_all(EngineError("the end"))
    assert str(waiting.exception(timeout=0)) == "the end"


def test_a_request_that_comes_while_the_waiting_ones_are_looked_at(make_slots):
    slots = make_slots(1)
    coming = [slots.job(PROMPTS[1], limit=2)]
    slots.batcher.waiting.clear()

    class Looked(Job):
        @property
        def cancelled(self):
            if coming[0][0] not in slots.batcher.waiting and coming[0][0].stats.n_generated == 0:
                slots.batcher.waiting.append(coming[0][0])
            return False

    job, events = slots.job(PROMPTS[0], limit=2)
    del job.cancelled
    job.__class__ = Looked
    slots.batcher.step(lambda: False)
    slots.run()
    assert isinstance(events[-1], Done)
    assert isinstance(coming[0][1][-1], Done)


def test_a_request_that_fails_as_it_gets_its_slot_ends(make_slots, monkeypatch):
    slots = make_slots(1)
    slots.job(PROMPTS[0], limit=2)
    slots.run()

    def keep(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(slots.context, "keep", keep)
    _, events = slots.job(PROMPTS[1])
    DecodeThread([slots.batcher], max_waiting=1)._step(slots.batcher)
    assert [type(event) for event in events] == [Failure]
    assert not slots.batcher.has_work
