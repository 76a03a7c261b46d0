"""OpenAI's request bodies as orders: https://platform.openai.com/docs/api-reference/chat/create and completions."""

from __future__ import annotations

import json
from typing import Any

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.json_schema import ANY_OBJECT, grammar_of_schema
from tritgguf.runtime.engine.sampling import MAX_SEED
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.fields import Fields
from tritgguf.runtime.server.models import ServedModel
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.tools import forced_call, tool_list

MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def sampling_fields(fields: Fields) -> dict[str, Any]:
    """Return the fields of Sampling that a body sets; min_p, top_k and repeat_penalty aren't OpenAI's own."""
    found = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "min_p": fields.number("min_p", 0, 1),
        "top_k": fields.integer("top_k", -1, 2**31 - 1),
        "repeat_penalty": fields.number("repeat_penalty", 0.01, 100),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "seed": fields.integer("seed", -(2**63), 2**63 - 1),
    }
    settings: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    if "seed" in settings:
        settings["seed"] = settings["seed"] % MAX_SEED if settings["seed"] >= 0 else None
    if settings.get("top_k", 0) < 0:
        settings["top_k"] = 0
    return settings


def chat_order(served: ServedModel, fields: Fields) -> Order:
    """Return what a body of /v1/chat/completions asks for."""
    _refuse_what_is_missing(fields)
    for name in ("functions", "function_call"):
        fields.refuse(name, why="it is replaced by tools and tool_choice")
    fields.refuse("audio", why="models here write text only")
    fields.refuse("modalities", ["text"], why="models here write text only")
    template = fields.part("chat_template_kwargs") or Fields({})
    tools, grammar = tool_list(served, fields), response_grammar(fields)
    if (call := forced_call(fields, tools)) is not None:
        if grammar is not None:
            raise RequestError("response_format and a required tool_choice exclude each other", param="tool_choice")
        grammar = call
    n_top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if n_top is not None and not fields.flag("logprobs"):
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    return Order(
        messages=messages_of(fields),
        tools=tools if fields.get("tool_choice") != "none" else None,
        think=template.flag("enable_thinking") if "enable_thinking" in template else None,
        settings=sampling_fields(fields),
        keep=fields.integer("n_keep", -1, 2**31 - 1),
        max_tokens=_limit(served, fields, "max_completion_tokens") or _limit(served, fields, "max_tokens"),
        stop=stops_of(fields),
        n_top=(n_top or 0) if fields.flag("logprobs") else None,
        grammar=grammar,
        logit_bias=_logit_bias(fields),
    )


def completion_order(served: ServedModel, fields: Fields) -> Order:
    """Return what a body of /v1/completions asks for; 16 tokens unless it says how many, as OpenAI's API has it."""
    _refuse_what_is_missing(fields)
    fields.refuse("echo", why="the prompt isn't repeated here")
    fields.refuse("suffix", "", why="models here continue a text, they don't fill one in")
    fields.refuse("best_of", 1, why="one answer is computed for each request")
    return Order(
        text=prompt_text(fields, "prompt"),
        settings=sampling_fields(fields),
        keep=fields.integer("n_keep", -1, 2**31 - 1),
        max_tokens=_limit(served, fields, "max_tokens") or 16,
        stop=stops_of(fields),
        n_top=fields.integer("logprobs", 0, MAX_TOP_LOGPROBS),
        grammar=response_grammar(fields),
        logit_bias=_logit_bias(fields),
    )


def messages_of(fields: Fields) -> list[dict[str, Any]]:
    """Return the messages as templates expect them: content is one text, arguments of calls are objects."""
    items = fields.items("messages")
    if not items:
        raise RequestError("messages is missing or empty", param="messages")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(items)]


def stops_of(fields: Fields) -> list[str]:
    stops = fields.texts("stop")
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop has {len(stops)} texts, at most {MAX_STOPS} are looked for", param="stop")
    return stops


def prompt_text(fields: Fields, name: str) -> str | list[int]:
    """Return one prompt: a text or token ids, also as the only item of a list."""
    prompts = prompt_list(fields, name)
    if len(prompts) != 1:
        raise RequestError(f"{name} has {len(prompts)} texts, expected one: send one request for each", param=name)
    return prompts[0]


def prompt_list(fields: Fields, name: str) -> list[str | list[int]]:
    """Return texts or lists of token ids; a single one is a list of one."""
    value = fields.get(name)
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_token(item) for item in value):
            return [value]
        if all(isinstance(item, str) or (isinstance(item, list) and item) for item in value) and all(
            _is_token(token) for item in value if isinstance(item, list) for token in item
        ):
            return value
    raise RequestError(f"{name} is missing or no text, list of texts or list of token ids", param=name)


def response_grammar(fields: Fields) -> str | None:
    """Return the grammar that response_format asks for."""
    wanted = fields.part("response_format")
    kind = wanted.text("type") if wanted else "text"
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return schema_grammar(ANY_OBJECT, "response_format")
    if kind != "json_schema":
        raise wanted.error("type", f"{json.dumps(kind)}, expected text, json_object or json_schema")
    described = wanted.part("json_schema") or Fields({})
    schema = described.get("schema")
    if schema is None:
        raise RequestError("response_format.json_schema.schema is missing", param="response_format")
    return schema_grammar(schema, "response_format")


def schema_grammar(schema: object, param: str) -> str:
    try:
        return grammar_of_schema(schema)
    except TritggufError as error:
        raise RequestError(str(error), param=param) from error


def _refuse_what_is_missing(fields: Fields) -> None:
    fields.refuse("n", 1, why="one answer is computed for each request; send several requests, they run together")


def _limit(served: ServedModel, fields: Fields, name: str) -> int | None:
    return fields.integer(name, 1, 2**31 - 1)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _logit_bias(fields: Fields) -> dict[int, float]:
    given = fields.part("logit_bias") or Fields({})
    found = {}
    for token in given.values:
        if not token.isdecimal() or len(token) > 9:
            raise RequestError(f"logit_bias names {token!r}, expected token ids", param="logit_bias")
        found[int(token)] = given.number(token, -100, 100) or 0.0
    return found


def _message(item: object, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise RequestError(f"{place} isn't an object", param="messages")
    fields = Fields(item, f"{place}.")
    role = _ROLES.get(fields.text("role") or "")
    if role is None:
        raise fields.error("role", f"{json.dumps(fields.get('role'))}, expected {', '.join(_ROLES)}")
    message: dict[str, Any] = {"role": role, "content": _content(fields)}
    if role == "assistant" and (calls := fields.items("tool_calls")):
        message["tool_calls"] = [_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)]
    elif "content" not in fields and role != "assistant":
        raise fields.error("content", "missing")
    fields.refuse("images", why="models here read text only")  # Ollama's field
    if (tool := fields.text("tool_name")) is not None:  # Ollama's too
        message["name"] = tool
    for name in ("name", "tool_call_id"):
        if (text := fields.text(name)) is not None:
            message[name] = text
    return message


def _content(fields: Fields) -> str:
    value = fields.get("content")
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise fields.error("content", "neither a text nor a list of parts")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise fields.error(
                "content", f"a list with a part of type {json.dumps(kind)[:40]}: models here read text only"
            )
        texts.append(part["text"])
    return "".join(texts)


def _call(item: object, place: str) -> dict[str, Any]:
    call = Fields(item if isinstance(item, dict) else {}, f"{place}.")
    function = call.part("function") or Fields({}, f"{place}.function.")
    name, arguments = function.text("name"), function.get("arguments")
    if name is None:
        raise function.error("name", "missing")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise function.error("arguments", "no JSON") from None
    called = {"type": "function", "function": {"name": name, "arguments": arguments or {}}}
    return {**called, "id": call.text("id")} if "id" in call else called
