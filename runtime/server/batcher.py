"""Continuous batching: the conversations of one model, whose next tokens are evaluated together.

Each conversation has a slot, a sequence of the context's cache. A step evaluates one batch: the next token of each slot
that generates, and a piece of the prompts of those that begin. A slot keeps its tokens when its request has ended, for
the next request that begins with them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tritgguf.converter.errors import EngineError, TritggufError
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context, Row
from tritgguf.runtime.engine.evaluator import common_prefix
from tritgguf.runtime.server.errors import too_late
from tritgguf.runtime.server.job import Job

# Tokens of prompts in a batch while others generate: they wait for that batch, and 512 tokens take seconds on a CPU.
PROMPT_TOKENS_AMONG_OTHERS = 64
# An idle slot's cache is given up for a prompt that shares less than this part of itself with it only where no slot is
# longer unused.
WORTH_KEEPING = 0.1


@dataclass
class Slot:
    """A sequence of the context; `cached` are the tokens in its cache, `job` what it works on.

    The first `pure` tokens of the cache (None: all) are as if nothing had been before them but each other; those behind
    have seen tokens that were dropped since, so they are of no use to other prompts.
    """

    index: int
    cached: list[int] = field(default_factory=list)
    pure: int | None = None
    job: Job | None = None
    admitted: int = 0  # the step in which the job got the slot
    last_used: int = 0

    @property
    def pending(self) -> list[int]:
        """The tokens that the job has and the cache hasn't."""
        return self.job.tokens[len(self.cached) :] if self.job else []


@dataclass
class Totals:
    """Sums since the start, for /metrics."""

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    shifts: int = 0
    batches: int = 0
    batch_tokens: int = 0
    decode_seconds: float = 0.0


class Batcher:
    """Slots over one context. All but the queues and the counts belongs to the decoding thread."""

    def __init__(self, model: Model, context: Context, n_ctx: int) -> None:
        self.totals = Totals()
        self.waiting: deque[Job] = deque()
        self.calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self.n_embedding = 0  # requests for embeddings
        self._model = model
        self._context = context
        self._n_ctx = n_ctx
        self._slots = [Slot(index) for index in range(context.n_sequences)]
        self._n_steps = 0

    @property
    def n_busy(self) -> int:
        """The number of slots that work."""
        return sum(slot.job is not None for slot in self._slots)

    @property
    def n_free(self) -> int:
        return len(self._slots) - self.n_busy

    @property
    def n_waiting(self) -> int:
        """The number of requests that wait: for a slot, or behind another one for embeddings."""
        return max(0, len(self.waiting) - self.n_free) + max(0, self.n_embedding - 1)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.calls or self.n_busy)

    def step(self, stopping: Callable[[], bool]) -> None:
        """Evaluate one batch; `stopping` is asked meanwhile."""
        self._n_steps += 1
        self._run_calls()
        self._drop_ended_requests()
        self._admit()
        shares = self._shares()
        if not shares:
            return
        rows = [
            Row(token, len(slot.cached) + index, slot.index, index == len(slot.pending) - 1)
            for slot, tokens in shares
            for index, token in enumerate(tokens)
        ]
        jobs = [slot.job for slot, _ in shares if slot.job]
        start = time.perf_counter()
        try:
            done = self._context.decode_batch(rows, lambda: stopping() or all(job.cancelled for job in jobs))
        except EngineError as error:
            for slot, _ in shares:
                self._forget_from(slot, 0)
                self._fail(slot, error)
            return
        if not done:  # nobody knows which of these tokens the cache holds
            for slot, _ in shares:
                self._forget_from(slot, len(slot.cached))
            return
        self._count(rows, time.perf_counter() - start)
        ready = [slot for slot, tokens in shares if len(tokens) == len(slot.pending)]
        for slot, tokens in shares:
            slot.cached += tokens
            slot.last_used = self._n_steps
        for output, slot in enumerate(ready):
            self._sample(slot, output)

    def fail_all(self, error: TritggufError) -> None:
        """End every request, also those that wait."""
        for slot in self._slots:
            self._fail(slot, error)
        while self.waiting:
            self.waiting.popleft().fail(error)
        while self.calls:
            future, _ = self.calls.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _run_calls(self) -> None:
        for _ in range(len(self.calls)):  # those that come meanwhile have to wait for a batch
            future, function = self.calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _drop_ended_requests(self) -> None:
        now = time.monotonic()
        late = too_late()
        for slot in self._slots:
            if slot.job and slot.job.cancelled:
                self._release(slot).sampler.close()
                self.totals.cancelled += 1
            elif slot.job and now > slot.job.deadline:
                self._fail(slot, late)
        for job in list(self.waiting):  # a copy: requests come meanwhile
            if not (job.cancelled or now > job.deadline):
                continue
            self.waiting.remove(job)
            if job.cancelled:
                job.sampler.close()
                self.totals.cancelled += 1
            else:
                job.fail(late)
                self.totals.failed += 1

    def _admit(self) -> None:
        while self.waiting and (free := [slot for slot in self._slots if slot.job is None]):
            job = self.waiting.popleft()
            # The last token is always evaluated: its logits are needed.
            shared = {slot.index: common_prefix(slot.cached[: slot.pure], job.tokens[:-1]) for slot in self._slots}
            best = max(free, key=lambda slot: (shared[slot.index], -slot.last_used))
            if shared[best.index] < WORTH_KEEPING * len(job.tokens):
                best = min(free, key=lambda slot: slot.last_used)
            best.job, best.admitted = job, self._n_steps  # first, so that whatever fails ends the request too
            self._prepare(best, shared, job)
            job.start(self._model.vocab, len(best.cached))
            self.totals.requests += 1
            self.totals.prompt_tokens += len(job.tokens)
            self.totals.cached_tokens += len(best.cached)

    def _prepare(self, slot: Slot, shared: dict[int, int], job: Job) -> None:
        """Make the slot's cache begin with as much of the prompt as any slot's has."""
        source = max(self._slots, key=lambda other: shared[other.index])
        n_shared = shared[source.index]
        if n_shared > shared[slot.index] and not self._model.has_states:
            self._forget_from(slot, 0)
            self._context.share(n_shared, source.index, slot.index)
            slot.cached = job.tokens[:n_shared]
        elif len(slot.cached) > shared[slot.index]:
            self._forget_from(slot, shared[slot.index])

    def _shares(self) -> list[tuple[Slot, list[int]]]:
        """Return which tokens of which slots are evaluated next: those that generate first, then prompts by age."""
        busy = sorted(
            (slot for slot in self._slots if slot.job), key=lambda slot: (len(slot.pending) > 1, slot.admitted)
        )
        n_generating = sum(len(slot.pending) == 1 for slot in busy)
        room = self._context.n_batch - n_generating
        if n_generating:
            room = min(room, PROMPT_TOKENS_AMONG_OTHERS)
        shares = []
        for slot in busy:
            pending = slot.pending
            if len(pending) == 1:
                shares.append((slot, pending))
            elif room > 0:
                shares.append((slot, pending[:room]))
                room -= len(shares[-1][1])
        return shares

    def _sample(self, slot: Slot, output: int) -> None:
        job = slot.job
        assert job is not None
        try:
            token = job.sampler.sample(self._context, output)
            logits = self._context.logits(output) if job.wants_logits else None
            finish = job.take(self._model.vocab, token, logits)
        except TritggufError as error:
            self._fail(slot, error)
            return
        if finish is None and len(job.tokens) == self._n_ctx:
            if job.keep is None:
                finish = "context"
            else:
                self._shift(slot, job, job.keep)
        if finish is not None:
            self.totals.generated_tokens += job.stats.n_generated
            self._release(slot).finish(finish)

    def _shift(self, slot: Slot, job: Job, keep: int) -> None:
        """Drop half of a full context's tokens behind the first `keep`; where the cache can't, evaluate the rest again.

        Tokens in the cache that another slot has too can't get other positions for one of them.
        """
        end = keep + (len(job.tokens) - keep) // 2
        shared = any(common_prefix(slot.cached, other.cached) > end for other in self._slots if other is not slot)
        if self._context.can_shift and not shared:
            self._context.shift(slot.index, keep, end)
            del slot.cached[keep:end]
            slot.pure = keep
        else:
            self._forget_from(slot, keep)
            slot.pure = None
        del job.tokens[keep:end]
        self.totals.shifts += 1

    def _release(self, slot: Slot) -> Job:
        job, slot.job = slot.job, None
        assert job is not None
        if slot.pure is not None:
            self._forget_from(slot, slot.pure)
            slot.pure = None
        return job

    def _fail(self, slot: Slot, error: TritggufError) -> None:
        if slot.job:
            self._release(slot).fail(error)
            self.totals.failed += 1

    def _forget_from(self, slot: Slot, n_tokens: int) -> None:
        del slot.cached[self._context.keep(n_tokens, slot.index) :]

    def _count(self, rows: list[Row], seconds: float) -> None:
        self.totals.batches += 1
        self.totals.batch_tokens += len(rows)
        self.totals.decode_seconds += seconds
