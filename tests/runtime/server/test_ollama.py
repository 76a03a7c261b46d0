"""Ollama's own client against a real server with the demo model."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import ollama
import pytest
from pydantic import BaseModel, Field

import tritgguf.runtime
from tests.served import PATIENCE_SECONDS

QUESTION = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"temperature": 0, "num_predict": 30}


class Person(BaseModel):
    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=120)


@pytest.fixture(scope="module")
def client(served):
    opened = ollama.Client(host=served.url, timeout=PATIENCE_SECONDS)
    yield opened
    opened._client.close()


@pytest.fixture(scope="module")
def expected(demo):
    with tritgguf.runtime.open(demo, n_threads=1) as session:
        return "".join(session.chat(QUESTION, temperature=0, max_tokens=30))


def test_chat(client, expected):
    answer = client.chat(model="demo", messages=QUESTION, options=GREEDY)
    assert answer.message.content == expected
    assert (answer.done, answer.done_reason in ("stop", "length")) == (True, True)
    assert 0 < answer.eval_count <= 30
    assert answer.total_duration > 0


def test_a_stream_has_the_same_text(client, expected):
    parts = list(client.chat(model="demo:latest", messages=QUESTION, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == expected
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].model == "demo:latest"


def test_generate_uses_the_template_unless_raw(client, demo, expected):
    assert client.generate(model="demo", prompt="Who are you?", options=GREEDY).response == expected
    streamed = client.generate(model="demo", prompt="Who are you?", options=GREEDY, stream=True)
    assert "".join(part.response for part in streamed) == expected
    with tritgguf.runtime.open(demo, n_threads=1) as session:
        continued = "".join(session.generate("I like", temperature=0, max_tokens=30))
    assert client.generate(model="demo", prompt="I like", raw=True, options=GREEDY).response == continued


def test_options(client, expected):
    stopped = client.chat(model="demo", messages=QUESTION, options={**GREEDY, "stop": [expected.split()[1]]})
    assert stopped.message.content == expected.split(expected.split()[1])[0]
    seeded = [client.chat(model="demo", messages=QUESTION, options={"seed": 3, "temperature": 2}) for _ in range(2)]
    assert seeded[0].message.content == seeded[1].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_structured_answers(client, stream):
    options = {"temperature": 1, "seed": 5}
    answer = client.chat(
        model="demo", messages=QUESTION, format=Person.model_json_schema(), options=options, stream=stream
    )
    text = "".join(part.message.content for part in answer) if stream else answer.message.content
    jsonschema.validate(json.loads(text), Person.model_json_schema())
    assert Person.model_validate_json(text).age <= 120


def test_what_the_server_has(client, served):
    listed = client.list().models
    assert [model.model for model in listed] == ["demo:latest", "caller:latest"]
    assert listed[0].details.quantization_level == "TQ2_0"
    assert listed[0].size > 1_000_000
    assert client.ps().models[0].digest == listed[0].digest
    shown = client.show("demo")
    assert shown.modelinfo["llama.context_length"] == 512
    assert "completion" in shown.capabilities
    assert "<|assistant|>" in shown.template
    assert "tools" in client.show("caller").capabilities
    assert json.loads(served.get("/api/version"))["version"]


def test_loading_and_unloading_do_nothing(client):
    assert client.generate(model="demo", keep_alive=0).done_reason == "load"
    assert client.chat(model="demo", messages=[]).done_reason == "load"


def test_embeddings(client):
    vectors = np.array(client.embed(model="demo", input=["a dog", "a house"]).embeddings)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(client.embeddings(model="demo", prompt="a dog").embedding, vectors[0], atol=1e-6)


def test_the_oldest_messages_are_left_out_of_a_long_conversation(client):
    turns = [{"role": role, "content": "dog " * 60} for _ in range(8) for role in ("user", "assistant")]
    answer = client.chat(model="demo", messages=[*turns, *QUESTION], options=GREEDY)
    assert 100 < answer.prompt_eval_count < 512


@pytest.mark.parametrize(
    ("call", "status", "part"),
    [
        (lambda client: client.chat(model="none", messages=QUESTION), 404, "'none' not found"),
        (lambda client: client.generate(model="demo", prompt="x", options={"temperature": -1}), 400, "temperature"),
        (lambda client: client.chat(model="demo", messages=QUESTION, format={"type": "no"}), 400, '"no"'),
        (lambda client: client.pull("llama3"), 501, "/api/pull"),
        (lambda client: client.generate(model="demo", prompt="dog " * 600), 400, "maximum context length is 512"),
        (
            lambda client: client.chat(model="demo", messages=[{"role": "user", "content": "x", "images": [b"png"]}]),
            400,
            "images",
        ),
    ],
)
def test_errors_have_ollamas_shape(client, call, status, part):
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)
    assert caught.value.status_code == status
    assert part in caught.value.error


def test_an_unknown_model_of_a_stream_is_an_error_too(client):
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.chat(model="none", messages=QUESTION, stream=True))
