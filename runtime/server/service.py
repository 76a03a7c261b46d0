"""From a request to a job, and from a job's events to what a coroutine can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.chat_template import Message, Tool
from tritgguf.runtime.chat.text_stream import TextStream
from tritgguf.runtime.engine.sampler import Grammar, Sampler
from tritgguf.runtime.engine.sampling import Sampling
from tritgguf.runtime.server.decode_thread import DecodeThread
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.job import Done, Event, Failure, Job, Piece
from tritgguf.runtime.server.models import Models, ServedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What a request asks for: a prompt (a conversation, a text or token ids) and how to continue it.

    `settings` are fields of Sampling. `grammar` is in llama.cpp's notation. `drop_old` lets the oldest messages be left
    out where the conversation is too long, as Ollama does.
    """

    messages: Sequence[Message] | None = None
    text: str | Sequence[int] = ""
    tools: Sequence[Tool] | None = None
    think: bool | None = None
    drop_old: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    n_top: int | None = None
    grammar: str | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)


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
    """The models and the thread that runs them; `seconds` limits each request."""

    def __init__(self, models: Models, thread: DecodeThread, *, seconds: float) -> None:
        self.models = models
        self.thread = thread
        self._seconds = seconds

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

    async def call(self, served: ServedModel, function: Callable[[], T]) -> T:
        """Run a function on the decoding thread."""
        future: Future[T] = self.thread.call(served.batcher, function)
        return await asyncio.wrap_future(future)

    def _job(self, served: ServedModel, order: Order, sink: Callable[[Event], None]) -> Job:
        vocab = served.model.vocab
        sampling = Sampling(**{**served.settings, **order.settings})
        if "" in order.stop:
            raise RequestError("a stop text is empty", param="stop")
        vocab.check(list(order.logit_bias))
        prompt = prompt_of(served, order)
        stream = TextStream(order.stop)
        stream.drop_first_space = order.messages is not None and vocab.is_sentencepiece
        grammar = None if order.grammar is None else Grammar(vocab, order.grammar)
        return Job(
            prompt,
            Sampler(vocab, sampling, grammar=grammar, logit_bias=order.logit_bias),
            stream,
            limit=order.max_tokens,
            n_top=order.n_top,
            deadline=time.monotonic() + self._seconds,
            sink=sink,
        )


def _free(making: asyncio.Future[Job]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().sampler.close()


def prompt_of(served: ServedModel, order: Order) -> list[int]:
    """Return the token ids of an order's prompt; RequestError if they don't leave room in the context."""
    if order.messages is None:
        tokens = served.prompts.text_tokens(order.text) if isinstance(order.text, str) else list(order.text)
        served.model.vocab.check(tokens)
        if not tokens:
            raise RequestError("the prompt is empty, there is nothing to continue")
    else:
        tokens = _chat_tokens(served, order, list(order.messages))
    if len(tokens) >= served.n_ctx:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens, the context of {served.n_ctx} has room for {served.n_ctx - 1}: "
            "shorten it, or start the server with a larger --ctx",
            code="context_length_exceeded",
        )
    return tokens


def _chat_tokens(served: ServedModel, order: Order, messages: list[Message]) -> list[int]:
    if served.model.chat_template is None:
        raise RequestError(f"{served.name} has no chat template: it is a base model, which only continues texts")

    def tokens_of(messages: list[Message]) -> list[int]:
        try:
            return served.prompts.chat_tokens(messages, think=order.think, tools=order.tools)
        except RequestError:
            raise
        except TritggufError as error:
            raise RequestError(str(error), param="messages") from error

    tokens = tokens_of(messages)
    n_first = 1 if messages and messages[0]["role"] == "system" else 0
    while order.drop_old and len(tokens) >= served.n_ctx and len(messages) > n_first + 1:
        # Down to a message of the user's: templates expect a question first.
        del messages[n_first]
        while len(messages) > n_first + 1 and messages[n_first]["role"] != "user":
            del messages[n_first]
        tokens = tokens_of(messages)
    return tokens
