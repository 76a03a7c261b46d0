"""Ollama's API: https://github.com/ollama/ollama/blob/main/docs/api.md, as its clients read it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tritgguf.runtime.chat.generation import Stats
from tritgguf.runtime.chat.json_schema import ANY_OBJECT
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.fields import Fields
from tritgguf.runtime.server.http import read_object, unless_disconnected
from tritgguf.runtime.server.job import Done, Piece
from tritgguf.runtime.server.models import ServedModel
from tritgguf.runtime.server.openai_api import answer_parts
from tritgguf.runtime.server.openai_requests import messages_of, sampling_fields, schema_grammar, stops_of
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.service import Answer
from tritgguf.runtime.server.state import State
from tritgguf.runtime.server.tools import knows_tools, tool_list

# The version whose API this is: clients ask for it to know what they may send.
API_VERSION = "0.13.0"
_REASON = {"end": "stop", "stop": "stop", "max_tokens": "length", "context": "length"}
_NEVER = "9999-12-31T23:59:59Z"


class Ollama:
    """The handlers of /api."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": API_VERSION})

    async def tags(self, _: Request) -> Response:
        return JSONResponse({"models": [_listed(served) for served in self._state.models.all]})

    async def ps(self, _: Request) -> Response:
        running = [
            {**_listed(served), "expires_at": _NEVER, "size_vram": 0, "context_length": served.n_ctx}
            for served in self._state.models.all
        ]
        return JSONResponse({"models": running})

    async def show(self, request: Request) -> Response:
        fields = await read_object(request, self._state.limits)
        served = self._find(fields)
        header = served.model.header.values
        architecture = str(header["general.architecture"])
        capabilities = ["completion", "embedding"]
        if served.model.chat_template is not None:
            capabilities += ["tools"] if knows_tools(served) else []
            capabilities += ["thinking"] if served.prompts.template.knows_thinking else []
        parameters = "\n".join(f"{name} {value:g}" for name, value in served.settings.items())
        return JSONResponse(
            {
                "license": str(header.get("general.license", "")),
                "modelfile": f"FROM {served.path.name}\n",
                "parameters": parameters,
                "template": served.model.chat_template or "",
                "details": _details(served),
                "model_info": {**dict(header), f"{architecture}.context_length": served.model.n_ctx_train},
                "capabilities": capabilities,
                "modified_at": served.modified.isoformat(),
            }
        )

    async def chat(self, request: Request) -> Response:
        fields = await read_object(request, self._state.limits)
        served = self._find(fields)
        if not fields.items("messages"):
            return JSONResponse(_loaded(served, {"message": {"role": "assistant", "content": ""}}))
        order = await asyncio.to_thread(_chat_order, served, fields)  # a schema may take long
        return await self._answer(request, fields, served, order, is_chat=True)

    async def generate(self, request: Request) -> Response:
        fields = await read_object(request, self._state.limits)
        served = self._find(fields)
        fields.refuse("images", why="models here read text only")
        fields.refuse("suffix", "", why="models here continue a text, they don't fill one in")
        fields.refuse("template", "", why="the model's own chat template is used; raw sends the prompt without it")
        fields.refuse("context", why="it is replaced by /api/chat's messages")
        prompt = fields.text("prompt") or ""
        if not prompt:
            return JSONResponse(_loaded(served, {"response": ""}))
        order = await asyncio.to_thread(_generate_order, served, fields, prompt)
        return await self._answer(request, fields, served, order, is_chat=False)

    async def embed(self, request: Request) -> Response:
        fields = await read_object(request, self._state.limits)
        served = self._find(fields)
        start = time.perf_counter()
        inputs: list[str | list[int]] = [*fields.texts("input")]
        truncate = fields.flag("truncate", True)
        vectors, n_tokens = await self._state.embed(request, served, inputs, truncate=truncate)
        spent = _nanoseconds(time.perf_counter() - start)
        body = {"model": fields.text("model"), "embeddings": vectors, "total_duration": spent, "load_duration": 0}
        return JSONResponse({**body, "prompt_eval_count": n_tokens})

    async def embeddings(self, request: Request) -> Response:
        fields = await read_object(request, self._state.limits)
        prompt = fields.text("prompt")
        inputs: list[str | list[int]] = [prompt] if prompt else []
        vectors, _ = await self._state.embed(request, self._find(fields), inputs, truncate=True)
        return JSONResponse({"embedding": vectors[0] if vectors else []})

    async def refused(self, request: Request) -> Response:
        raise RequestError(
            f"{request.url.path} isn't supported: this server has the models that it was started with", status=501
        )

    def _find(self, fields: Fields) -> ServedModel:
        name = fields.text("model") or fields.text("name")
        if not name:
            raise RequestError("model is required", param="model")
        return self._state.models.find(name)

    async def _answer(
        self, request: Request, fields: Fields, served: ServedModel, order: Order, *, is_chat: bool
    ) -> Response:
        streams = fields.flag("stream", True)  # before a slot works on it: nobody would take a refused request's answer
        answer = await self._state.begin(request, served, order)
        lines = _lines(served, order, answer, fields.text("model") or served.name, is_chat=is_chat)
        if streams:
            return self._state.stream(_newline_delimited(lines), "application/x-ndjson", answer)
        try:
            return JSONResponse(await unless_disconnected(request, _joined(lines, is_chat=is_chat)))
        finally:
            answer.close()


def error_body(error: RequestError) -> dict[str, Any]:
    return {"error": str(error)}


async def _lines(
    served: ServedModel, order: Order, answer: Answer, name: str, *, is_chat: bool
) -> AsyncIterator[dict[str, Any]]:
    start, parts = time.perf_counter(), answer_parts(served, order, answer)

    def line(content: str, thinking: str = "", **more: object) -> dict[str, Any]:
        base = {"model": name, "created_at": _now()}
        if is_chat:
            message = {"role": "assistant", "content": content, **({"thinking": thinking} if thinking else {})}
            return {**base, "message": {**message, **more}, "done": False}
        return {**base, "response": content, **({"thinking": thinking} if thinking else {}), "done": False}

    async for event in answer.events():
        for kind, text in parts.feed(event.text) if isinstance(event, Piece) else parts.end():
            yield line(text) if kind == "content" else line("", text)
        if isinstance(event, Done):
            if parts.calls:
                functions = [{"name": call.name, "arguments": call.arguments} for call in parts.calls]
                yield line("", tool_calls=[{"function": function} for function in functions])
            counts = _counts(event.stats, time.perf_counter() - start)
            yield {**line(""), "done": True, "done_reason": _REASON[event.finish], **counts}


async def _joined(lines: AsyncIterator[dict[str, Any]], *, is_chat: bool) -> dict[str, Any]:
    """Return the last line with the texts of all."""
    texts = {"content": "", "thinking": ""}
    calls: list[Any] = []
    last: dict[str, Any] = {}
    async for last in lines:
        said = last["message"] if is_chat else {**last, "content": last["response"]}
        for name in texts:
            texts[name] += said.get(name, "")
        calls += said.get("tool_calls", [])
    thinking = {"thinking": texts["thinking"]} if texts["thinking"] else {}
    if not is_chat:
        return {**last, "response": texts["content"], **thinking}
    message = {"role": "assistant", "content": texts["content"], **thinking, **({"tool_calls": calls} if calls else {})}
    return {**last, "message": message}


async def _newline_delimited(lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Yield JSON lines; an error in the middle is one too, and the last."""
    try:
        async for line in lines:
            yield json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    except RequestError as error:
        yield json.dumps(error_body(error)).encode() + b"\n"


def _chat_order(served: ServedModel, fields: Fields) -> Order:
    messages, tools = messages_of(fields), tool_list(served, fields)
    return Order(messages=messages, tools=tools, think=_think(fields), **_options(fields))


def _generate_order(served: ServedModel, fields: Fields, prompt: str) -> Order:
    if fields.flag("raw") or served.model.chat_template is None:
        return Order(text=prompt, **_options(fields))
    system = fields.text("system")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return Order(messages=messages, think=_think(fields), **_options(fields))


def _options(fields: Fields) -> dict[str, Any]:
    """Return the fields of Order that `options`, `format` and the like set."""
    options = fields.part("options") or Fields({}, "options.")
    n_predict = options.integer("num_predict", -2, 2**31 - 1)
    grammar = None
    if (wanted := fields.get("format")) not in (None, ""):
        grammar = schema_grammar(ANY_OBJECT if wanted == "json" else wanted, "format")
    return {
        "settings": sampling_fields(options),
        "max_tokens": n_predict if n_predict is not None and n_predict > 0 else None,
        "stop": stops_of(options),
        "grammar": grammar,
        "n_top": None,
        "drop_old": fields.flag("truncate", True),
        "shift": fields.flag("shift") if "shift" in fields else None,
        "keep": options.integer("num_keep", -1, 2**31 - 1),
    }


def _think(fields: Fields) -> bool | None:
    value = fields.get("think")
    return None if value is None else value not in (False, "none")  # a level, such as "high", is thinking too


def _loaded(served: ServedModel, empty: dict[str, Any]) -> dict[str, Any]:
    return {"model": served.name, "created_at": _now(), **empty, "done": True, "done_reason": "load"}


def _listed(served: ServedModel) -> dict[str, Any]:
    name = f"{served.name}:latest"
    modified = served.modified.isoformat()
    base = {"name": name, "model": name, "modified_at": modified, "size": served.file_bytes}
    return {**base, "digest": served.digest, "details": _details(served)}


def _details(served: ServedModel) -> dict[str, Any]:
    architecture = str(served.model.header.values["general.architecture"])
    # "llama 1B TQ2_0 - 2.06 bpw ternary": the rest is in no field of Ollama's
    kind = served.model.description.removeprefix(architecture).strip().partition(" ")[2].partition(" ")[0]
    return {
        "parent_model": "",
        "format": "gguf",
        "family": architecture,
        "families": [architecture],
        "parameter_size": _rounded(served.model.n_params),
        "quantization_level": kind,
    }


def _rounded(n_params: int) -> str:
    return f"{n_params / 1e9:.1f}B" if n_params >= 1e9 else f"{n_params / 1e6:.1f}M"


def _counts(stats: Stats, seconds: float) -> dict[str, int]:
    return {
        "total_duration": _nanoseconds(seconds),
        "load_duration": 0,
        "prompt_eval_count": stats.n_prompt,
        "prompt_eval_duration": _nanoseconds(stats.prompt_seconds),
        "eval_count": stats.n_generated,
        "eval_duration": _nanoseconds(stats.generation_seconds),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
