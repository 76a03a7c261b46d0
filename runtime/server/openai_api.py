"""OpenAI's API: https://platform.openai.com/docs/api-reference, as its clients read it.

Beyond it, answers have `timings` as llama.cpp's server gives them, and `reasoning_content` for what a model thinks.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tritgguf.runtime.chat.generation import Stats
from tritgguf.runtime.server.answer_parts import THINK, AnswerParts, ToolCall
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.fields import Fields
from tritgguf.runtime.server.http import read_object, unless_disconnected
from tritgguf.runtime.server.job import Chosen, Done, Likely, Piece
from tritgguf.runtime.server.models import ServedModel
from tritgguf.runtime.server.openai_requests import chat_order, completion_order, prompt_list
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.service import Answer
from tritgguf.runtime.server.state import State

_FINISH = {"end": "stop", "stop": "stop", "max_tokens": "length", "context": "length"}


def error_body(error: RequestError) -> dict[str, Any]:
    fields = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return {"error": fields}


class OpenAI:
    """The handlers of /v1."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(served) for served in self._state.models.all]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(_model(self._state.models.find(request.path_params["name"])))

    async def chat_completions(self, request: Request) -> Response:
        fields, served = await self._asked(request)
        order = await asyncio.to_thread(chat_order, served, fields)  # a schema may take long
        return await self._answer(request, fields, served, order, Chat(served, fields, order))

    async def completions(self, request: Request) -> Response:
        fields, served = await self._asked(request)
        order = await asyncio.to_thread(completion_order, served, fields)
        return await self._answer(request, fields, served, order, Completion(served, fields))

    async def embeddings(self, request: Request) -> Response:
        fields, served = await self._asked(request)
        encoding = fields.text("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise fields.error("encoding_format", f"{encoding!r}, expected float or base64")
        inputs = prompt_list(fields, "input")
        vectors, n_tokens = await self._state.embed(request, served, inputs, truncate=False)
        if fields.get("dimensions") not in (None, len(vectors[0])):
            raise fields.error(
                "dimensions", f"{fields.get('dimensions')}, this model's embeddings have {len(vectors[0])}"
            )
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector) if encoding == "base64" else vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})

    async def _asked(self, request: Request) -> tuple[Fields, ServedModel]:
        fields = await read_object(request, self._state.limits)
        name = fields.text("model")
        if name is None:
            raise RequestError("model is missing", param="model")
        return fields, self._state.models.find(name)

    async def _answer(
        self, request: Request, fields: Fields, served: ServedModel, order: Order, shape: Chat | Completion
    ) -> Response:
        # All of the body is read before a slot works on it: nobody would take the answer of a refused request.
        streams, options = fields.flag("stream"), fields.part("stream_options") or Fields({})
        with_usage = options.flag("include_usage")
        answer = await self._state.begin(request, served, order)
        shape.begin(answer)
        if not streams:
            try:
                return JSONResponse(await unless_disconnected(request, shape.whole(answer)))
            finally:
                answer.close()
        parts = _server_sent(shape.chunks(answer, with_usage=with_usage))
        return self._state.stream(parts, "text/event-stream", answer)


class Chat:
    """The shape of a chat completion."""

    def __init__(self, served: ServedModel, fields: Fields, order: Order) -> None:
        self._served, self._order = served, order
        self._base = _base("chatcmpl", served)
        self._parts = AnswerParts(tools=bool(order.tools))

    def begin(self, answer: Answer) -> None:
        self._parts = answer_parts(self._served, self._order, answer)

    async def whole(self, answer: Answer) -> dict[str, Any]:
        said = {"content": "", "thinking": ""}
        tokens: list[Chosen] = []
        done: Done | None = None
        async for event in answer.events():
            if isinstance(event, Piece):
                tokens += event.tokens
            else:
                done = event
            for kind, text in self._parts.feed(event.text) if isinstance(event, Piece) else self._parts.end():
                said[kind] += text
        assert done is not None
        calls = [_call(call) for call in self._parts.calls]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said["content"] if said["content"] or not calls else None,
        }
        if said["thinking"]:
            message["reasoning_content"] = said["thinking"]
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(tokens),
            "finish_reason": self._finish(done),
        }
        body = {**self._base, "object": "chat.completion", "choices": [choice], "usage": usage(done.stats)}
        return {**body, "timings": timings(done.stats)}

    async def chunks(self, answer: Answer, *, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": ""})
        async for event in answer.events():
            tokens = event.tokens if isinstance(event, Piece) else ()
            shown = list(self._parts.feed(event.text) if isinstance(event, Piece) else self._parts.end())
            if tokens and not shown:
                shown = [("content", "")]
            for index, (kind, text) in enumerate(shown):
                name = "reasoning_content" if kind == "thinking" else "content"
                yield self._chunk({name: text}, tokens if index == 0 else ())
            if isinstance(event, Done):
                calls = [{"index": index, **_call(call)} for index, call in enumerate(self._parts.calls)]
                if calls:
                    yield self._chunk({"tool_calls": calls})
                yield self._chunk({}, finish=self._finish(event))
                if with_usage:
                    last = {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": usage(event.stats)}
                    yield {**last, "timings": timings(event.stats)}

    def _finish(self, done: Done) -> str:
        return "tool_calls" if self._parts.calls and done.finish == "end" else _FINISH[done.finish]

    def _chunk(self, delta: dict[str, Any], tokens: Sequence[Chosen] = (), finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": finish}
        return {**self._base, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: Sequence[Chosen]) -> dict[str, Any] | None:
        if self._order.n_top is None or not tokens:
            return None
        return {
            "content": [{**_likely(token), "top_logprobs": [_likely(top) for top in token.top]} for token in tokens]
        }


class Completion:
    """The shape of a text completion."""

    def __init__(self, served: ServedModel, fields: Fields) -> None:
        self._base = {**_base("cmpl", served), "object": "text_completion"}
        self._asked_logprobs = "logprobs" in fields
        self._offset = 0

    def begin(self, answer: Answer) -> None:
        """Nothing depends on the prompt."""

    async def whole(self, answer: Answer) -> dict[str, Any]:
        texts: list[str] = []
        tokens: list[Chosen] = []
        done: Done | None = None
        async for event in answer.events():
            if isinstance(event, Piece):
                texts.append(event.text)
                tokens += event.tokens
            else:
                done = event
        assert done is not None
        choice = self._choice("".join(texts), tokens, _FINISH[done.finish])
        return {**self._base, "choices": [choice], "usage": usage(done.stats), "timings": timings(done.stats)}

    async def chunks(self, answer: Answer, *, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        async for event in answer.events():
            if isinstance(event, Piece):
                yield {**self._base, "choices": [self._choice(event.text, event.tokens, None)]}
                continue
            yield {**self._base, "choices": [self._choice("", (), _FINISH[event.finish])]}
            if with_usage:
                yield {**self._base, "choices": [], "usage": usage(event.stats), "timings": timings(event.stats)}

    def _choice(self, text: str, tokens: Sequence[Chosen], finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Chosen]) -> dict[str, Any] | None:
        if not self._asked_logprobs or not tokens:
            return None
        texts, offsets = [_text(token.piece) for token in tokens], []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{_text(top.piece): top.logprob for top in token.top} for token in tokens],
            "text_offset": offsets,
        }


def answer_parts(served: ServedModel, order: Order, answer: Answer) -> AnswerParts:
    """Return what divides the answer: it begins inside <think> where the prompt ends with that."""
    template = served.model.chat_template or ""
    knows = THINK in template or (order.messages is not None and served.prompts.template.knows_thinking)
    tail = served.model.vocab.detokenize(answer.prompt[-4:], special=True).decode("utf-8", "replace")
    return AnswerParts(tools=bool(order.tools), thinks=tail.rstrip().endswith(THINK), knows_thinking=knows)


def usage(stats: Stats) -> dict[str, Any]:
    return {
        "prompt_tokens": stats.n_prompt,
        "completion_tokens": stats.n_generated,
        "total_tokens": stats.n_prompt + stats.n_generated,
        "prompt_tokens_details": {"cached_tokens": stats.n_cached},
    }


def timings(stats: Stats) -> dict[str, float]:
    return {
        "cache_n": stats.n_cached,
        "prompt_n": stats.n_prompt - stats.n_cached,
        "prompt_ms": 1000 * stats.prompt_seconds,
        "prompt_per_second": stats.prompt_rate,
        "predicted_n": stats.n_generated,
        "predicted_ms": 1000 * stats.generation_seconds,
        "predicted_per_second": stats.generation_rate,
    }


async def _server_sent(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Yield server-sent events; an error in the middle is one too, and the last."""
    try:
        async for chunk in chunks:
            yield b"data: " + json.dumps(chunk, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
        yield b"data: [DONE]\n\n"
    except RequestError as error:
        yield b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"


def _base(prefix: str, served: ServedModel) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}


def _model(served: ServedModel) -> dict[str, Any]:
    created = int(served.modified.timestamp())
    return {"id": served.name, "object": "model", "created": created, "owned_by": "tritgguf"}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _likely(token: Likely) -> dict[str, Any]:
    return {"token": _text(token.piece), "logprob": token.logprob, "bytes": list(token.piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _encoded(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
