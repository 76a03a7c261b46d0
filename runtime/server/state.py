"""What the handlers of both APIs share: the service, the limits, and how a request becomes a response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.http import Limits, Stream, unless_disconnected
from tritgguf.runtime.server.models import Models, ServedModel
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.service import Answer, Service

MAX_INPUTS = 256  # texts of one request for embeddings


@dataclass
class State:
    service: Service
    limits: Limits = field(default_factory=Limits)
    abort: Callable[[Scope], None] = lambda _scope: None  # cuts a connection; known when the server runs

    @property
    def models(self) -> Models:
        return self.service.models

    async def begin(self, request: Request, served: ServedModel, order: Order) -> Answer:
        """Queue the order and wait for its first event: what goes wrong until then still has an HTTP status."""

        async def first() -> Answer:
            answer = await self.service.start(served, order)
            try:
                return await answer.begun()
            except BaseException:
                answer.close()
                raise

        return await unless_disconnected(request, first())

    def stream(self, parts: AsyncIterator[bytes], media_type: str, answer: Answer) -> Response:
        def abort(scope: Scope) -> None:
            self.abort(scope)

        return Stream(parts, media_type=media_type, limits=self.limits, close=answer.close, abort=abort)

    async def embed(
        self, request: Request, served: ServedModel, inputs: Sequence[str | list[int]], *, truncate: bool
    ) -> tuple[list[list[float]], int]:
        """Return each text's embedding, and the number of tokens; `truncate` shortens texts that are too long."""
        if len(inputs) > MAX_INPUTS:
            raise RequestError(f"input has {len(inputs)} texts, at most {MAX_INPUTS} are taken at once", param="input")
        tokenized = await asyncio.to_thread(_tokenized, served, inputs, truncate=truncate)
        vectors = await unless_disconnected(request, self.service.embed(served, tokenized))
        return vectors, sum(map(len, tokenized))


def _tokenized(served: ServedModel, inputs: Sequence[str | list[int]], *, truncate: bool) -> list[list[int]]:
    texts = []
    for text in inputs:
        tokens = served.prompts.text_tokens(text, special=False) if isinstance(text, str) else list(text)
        served.model.vocab.check(tokens)
        if truncate:
            tokens = tokens[: served.n_ctx]
        if not 0 < len(tokens) <= served.n_ctx:
            raise RequestError(
                f"a text has {len(tokens)} tokens, expected 1 to {served.n_ctx}",
                param="input",
                code="context_length_exceeded",
            )
        texts.append(tokens)
    return texts
