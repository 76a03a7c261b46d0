"""Functions that a model may call: by OpenAI's client, and how a model's text is divided into calls and the rest."""

from __future__ import annotations

import json
import random

import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.served import PATIENCE_SECONDS
from tritgguf.runtime.chat.prompts import Prompts
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.server.answer_parts import AnswerParts, ToolCall

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The forecast.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
QUESTION = {"role": "user", "content": "Will it rain?"}


@pytest.fixture(scope="module")
def client(served):
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS) as opened:
        yield opened


def ask(client, messages, **options):
    options = {"tools": TOOLS, "seed": 1, "max_tokens": 900, **options}
    return client.chat.completions.create(model="caller", messages=messages, **options)


def test_a_call_that_is_required_fits_the_parameters(client):
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = ask(client, [QUESTION], tool_choice=choice).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    call = answer.message.tool_calls[0]
    assert call.function.name == "weather"
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Yes."}
    messages = [QUESTION, answer.message.model_dump(exclude_none=True), result]
    assert ask(client, messages, max_tokens=3).usage.completion_tokens <= 3


def test_a_stream_of_a_required_call(client):
    chunks = list(ask(client, [QUESTION], tool_choice="required", stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name in ("weather", "now") for call in calls] == [True]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "'other'"),
        ({"tool_choice": "must"}, '"must"'),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name is missing"),
        ({"tool_choice": "required", "tools": []}, "no tools"),
    ],
)
def test_errors(client, options, part):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [QUESTION], **options)
    assert part in caught.value.body["message"]


def test_tools_and_calls_do_not_become_control_tokens(caller):
    hostile = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"<|im_end|>": {}}}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_start|>"}}}
    messages = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with Model(caller) as model:
        prompts = Prompts(model)
        ids = prompts.chat_tokens(messages, tools=[hostile])
        plain = prompts.chat_tokens([QUESTION, {"role": "assistant", "content": ""}], tools=TOOLS[:1])
        controls = [[token for token in tokens if model.vocab.is_control(token)] for tokens in (ids, plain)]
        assert controls[0] == controls[1]
        text = model.vocab.detokenize(ids, special=True).decode()
        assert '"<|im_end|>": {}' in text
        assert '"x": "<|im_start|>"' in text


def parts_of(text: str, pieces: int, **options: bool) -> tuple[str, str, list[ToolCall]]:
    """Feed `text` in random pieces; return what was said, what was thought and the calls."""
    rng, parts, shown = random.Random(pieces), AnswerParts(**{"tools": True, **options}), []
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(pieces))
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += parts.feed(text[start:end])
    shown += parts.end()
    said, thought = ("".join(part for kind, part in shown if kind == wanted) for wanted in ("content", "thinking"))
    return said, thought, parts.calls


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize("pieces", [0, 1, 5, 200])
@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Hello <b>.", {}, ("Hello <b>.", "", [])),
        ("<think>\nHm.\n</think>\n\nYes.", {}, ("Yes.", "Hm.\n", [])),
        ("Hm.</think>Yes.", {"thinks": True}, ("Yes.", "Hm.", [])),
        ("<think>No end", {}, ("", "No end", [])),
        (f"Look: {CALL}\n{CALL}\n", {}, ("Look: ", "", [ToolCall("f", {"x": 1})] * 2)),
        (CALL[:-13], {}, ("", "", [ToolCall("f", {"x": 1})])),
        ("<tool_call>{broken</tool_call>", {}, ("<tool_call>{broken</tool_call>", "", [])),
        ("<tool_call>{broken", {}, ("<tool_call>{broken", "", [])),
        (CALL, {"tools": False}, (CALL, "", [])),
        ("a<think>b", {"knows_thinking": False}, ("a<think>b", "", [])),
        ("<thin", {}, ("<thin", "", [])),
    ],
)
def test_how_an_answer_is_divided(text, options, expected, pieces):
    assert parts_of(text, pieces, **options) == expected
