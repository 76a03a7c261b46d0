"""From a request to a job, and from a job's events to what a coroutine can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import numpy as np

from tritgguf.runtime.chat.text_stream import TextStream
from tritgguf.runtime.engine.sampler import Grammar, Sampler
from tritgguf.runtime.engine.sampling import Sampling
from tritgguf.runtime.server.decode_thread import DecodeThread
from tritgguf.runtime.server.errors import RequestError, too_late
from tritgguf.runtime.server.job import Done, Event, Failure, Job, Piece
from tritgguf.runtime.server.models import EMBEDDED_AT_ONCE, Models, ServedModel
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.prompt import kept_tokens, prompt_of

# A context that is shifted never ends an answer. So many contexts of tokens do, as in Ollama.
MOST_CONTEXTS = 10


class Answer:
    """The events of one job, for one coroutine; close() ends the job wherever it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.job: Job | None = None
        self.prompt: list[int] = []
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._peeked: Piece | Done | None = None

    def put(self, event: Event) -> None:
        """Take an event from the decoding thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends, and nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def begun(self) -> Answer:
        """Wait for the first event; raises the error if it is one."""
        self._peeked = await self._next()
        return self

    async def events(self) -> AsyncIterator[Piece | Done]:
        """Yield the events up to Done; raises the error of a failed job."""
        while True:
            event, self._peeked = self._peeked or await self._next(), None
            yield event
            if isinstance(event, Done):
                return

    async def _next(self) -> Piece | Done:
        event = await self._events.get()
        if isinstance(event, Failure):
            error = event.error
            raise error if isinstance(error, RequestError) else RequestError(str(error), status=500)
        return event

    def close(self) -> None:
        if self.job:
            self.job.cancel()


class Service:
    """The models and the thread that runs them; `seconds` limits each request.

    Full contexts are shifted where `shifts` says so, unless the request does.
    """

    def __init__(self, models: Models, thread: DecodeThread, *, seconds: float, shifts: bool = False) -> None:
        self.models = models
        self.thread = thread
        self._seconds = seconds
        self._shifts = shifts

    async def start(self, served: ServedModel, order: Order) -> Answer:
        """Queue the order; TritggufError where it is wrong, or where the server has no room."""
        answer = Answer(asyncio.get_running_loop())
        making = asyncio.ensure_future(asyncio.to_thread(self._job, served, order, answer.put))
        try:
            answer.job = await asyncio.shield(making)
        except asyncio.CancelledError:  # the thread goes on, and nobody would free the job's sampler
            making.add_done_callback(_free)
            raise
        answer.prompt = list(answer.job.tokens)
        try:
            self.thread.submit(served.batcher, answer.job)
        except RequestError:
            answer.job.sampler.close()
            raise
        return answer

    async def embed(self, served: ServedModel, texts: Sequence[list[int]]) -> list[list[float]]:
        """Return the embeddings of texts, given as token ids; RequestError where the server has no room."""
        deadline = time.monotonic() + self._seconds
        with self.thread.embedding(served.batcher):
            async with served.embedder_lock:
                return [await self._embedding(served, tokens, deadline) for tokens in texts]

    async def _embedding(self, served: ServedModel, tokens: list[int], deadline: float) -> list[float]:
        states = []
        for start in range(0, len(tokens), EMBEDDED_AT_ONCE):
            if time.monotonic() > deadline:
                raise too_late()
            part = partial(served.hidden_states, tokens[start : start + EMBEDDED_AT_ONCE], start)
            states.append(await asyncio.wrap_future(self.thread.call(served.batcher, part)))
        return served.embedding(np.concatenate(states))

    def _job(self, served: ServedModel, order: Order, sink: Callable[[Event], None]) -> Job:
        vocab = served.model.vocab
        sampling = Sampling(**{**served.settings, **order.settings})
        if "" in order.stop:
            raise RequestError("a stop text is empty", param="stop")
        vocab.check(list(order.logit_bias))
        shifts = self._shifts if order.shift is None else order.shift
        prompt = prompt_of(served, order, shifts=shifts)
        keep = kept_tokens(served, order, prompt) if shifts else None
        limit = min(order.max_tokens or math.inf, MOST_CONTEXTS * served.n_ctx) if shifts else order.max_tokens
        stream = TextStream(order.stop)
        stream.drop_first_space = order.messages is not None and vocab.is_sentencepiece
        grammar = None if order.grammar is None else Grammar(vocab, order.grammar)
        return Job(
            prompt,
            Sampler(vocab, sampling, grammar=grammar, logit_bias=order.logit_bias),
            stream,
            limit=limit,
            keep=keep,
            n_top=order.n_top,
            deadline=time.monotonic() + self._seconds,
            sink=sink,
        )


def _free(making: asyncio.Future[Job]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().sampler.close()
