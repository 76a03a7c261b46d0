"""Bad clients, bad bodies, signals: nothing leaks, and the next request works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from tests.command_line import run_captured
from tests.paths import ROOT
from tests.served import PATIENCE_SECONDS, Served, serve
from tritgguf.converter import convert
from tritgguf.runtime.chat.json_schema import grammar_of_schema
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.models import Capacity, open_models
from tritgguf.runtime.server.ollama_api import Ollama
from tritgguf.runtime.server.openai_api import OpenAI
from tritgguf.runtime.server.service import Service
from tritgguf.runtime.server.state import State

# The model with random weights, which may not end: 29,000 tokens take far longer than what the tests do meanwhile.
NEVER_ENDING = {"model": "caller", "max_tokens": 29_000, "logit_bias": {"258": -100}, "temperature": 0}
KEY = "Authorization: Bearer sesame"
CHAT = "/v1/chat/completions"


def body(**more) -> dict:
    return {"model": "demo", "messages": [{"role": "user", "content": "Who are you?"}], **more}


def answer_of(connection) -> tuple[int, bytes]:
    """Return status and the rest of a response whose connection the server closes."""
    data = b""
    with connection:
        while part := connection.recv(65536):
            data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


def post(served: Served, path: str, data: object, *headers: str) -> tuple[int, bytes]:
    return answer_of(served.post(path, data, "Connection: close", *headers))


def test_the_next_request_works(served):
    status, answer = post(served, "/v1/chat/completions", body(max_tokens=5))
    assert status == 200
    assert json.loads(answer)["usage"]["completion_tokens"] <= 5


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "valid JSON"),
        (b"{", "valid JSON"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": NaN}]}', "content"),
        (b"\xff\xfe", "valid JSON"),
        (b"[]", "a list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model": ' + b"1" * 5000 + b"}", "valid JSON"),
        (b'{"model": {}}', "model is an object"),
        (b'{"model": "demo"}', "messages"),
        (b'{"model": "demo", "messages": [null]}', "messages[0]"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}', "Unicode"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "image_url"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "seed": 1e999}', "seed"),
    ],
)
def test_bodies_that_are_no_request(served, data, part):
    for path in ("/v1/chat/completions", "/api/chat"):
        if path == "/api/chat" and part in ("messages", "seed"):
            continue  # without messages, Ollama's API loads a model; its seed is an option
        status, answer = post(served, path, data)
        error = json.loads(answer)["error"]
        assert status == 400
        assert part in (error if isinstance(error, str) else error["message"])


def test_a_body_that_is_too_large(served):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    for rest in (b"Content-Length: 99999999999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        connection = served.connect()
        connection.sendall(head + rest)
        if b"chunked" in rest:
            chunk = b"%x\r\n%s\r\n" % (1 << 20, b"a" * (1 << 20))
            try:
                for _ in range(6):
                    connection.sendall(chunk)
            except OSError:
                continue  # the server hung up before all was sent, which is its right
        try:
            status, answer = answer_of(connection)
        except ConnectionResetError:
            continue
        assert status == 413
        assert json.loads(answer)["error"]["code"] == "body_too_large"


def test_paths_and_methods_that_are_not_there(served):
    for path, status in (("/v1/nothing", 404), ("/api/nothing", 404), ("/api/tags", 405)):
        found, answer = post(served, path, {})
        assert found == status
        assert isinstance(json.loads(answer)["error"], str) is path.startswith("/api")


def test_requests_of_other_sites_pages_are_refused(served):
    assert post(served, "/api/chat", body(), "Origin: https://evil.example")[0] == 403
    connection = served.connect()
    connection.sendall(b"GET /api/tags HTTP/1.1\r\nHost: evil.example:80\r\nConnection: close\r\n\r\n")
    assert answer_of(connection)[0] == 403
    assert post(served, "/v1/chat/completions", body(max_tokens=1), f"Origin: {served.url}")[0] == 200


@pytest.fixture(scope="module")
def endless(caller) -> Iterator[Served]:
    """A server with two slots, room for one more request, and a key."""
    options = ("--slots", "2", "--ctx", "30000", "--threads", "1", "--queue", "1")
    with serve(caller, *options, env={**os.environ, "TRITGGUF_API_KEY": "sesame"}) as running:
        running.key = "sesame"
        yield running
    assert "sesame" not in "".join(running.process.args)


def begin(served: Served, **more) -> socket.socket:
    """Send a request that doesn't end, and wait until it has a slot."""
    n_before = served.metric("requests_total")
    connection = served.post(CHAT, body(**{**NEVER_ENDING, **more}), KEY)
    served.wait_until("requests_total", n_before + 1)
    return connection


def idle(served: Served) -> None:
    served.wait_until("requests_waiting", 0)
    served.wait_until("slots_busy", 0)
    assert post(served, CHAT, body(model="caller", max_tokens=2), KEY)[0] == 200


def test_a_client_that_hangs_up_frees_its_slot(endless):
    for stream in (True, False):
        cancelled = endless.metric("requests_cancelled_total")
        connections = [begin(endless, stream=stream) for _ in range(2)]
        if stream:
            assert all(b"200 OK" in connection.recv(1000) for connection in connections)
        for connection in connections:
            connection.close()
        idle(endless)
        assert endless.metric("requests_cancelled_total") == cancelled + 2


def test_a_client_that_hangs_up_while_it_waits_and_a_full_queue(endless):
    working = [begin(endless, stream=True) for _ in range(2)]
    for _ in range(2):
        with endless.post(CHAT, body(model="caller"), KEY):
            endless.wait_until("requests_waiting", 1)
            status, answer = post(endless, CHAT, body(model="caller"), KEY)
            assert (status, json.loads(answer)["error"]["code"]) == (503, "queue_full")
        endless.wait_until("requests_waiting", 0)
    for connection in working:
        connection.close()
    idle(endless)


def test_a_slow_reader_keeps_no_slot(endless):
    """It takes nothing of its answer, which is computed all the same; others are answered meanwhile."""
    slow = begin(endless, stream=True, max_tokens=500, logprobs=True, top_logprobs=20)
    idle(endless)
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        data += slow.recv(65536)
    slow.close()
    assert b"[DONE]" in data


def test_a_key_is_asked_for(endless):
    assert b"<html" in endless.get("/")
    status, answer = post(endless, CHAT, body(model="caller"), "Authorization: Bearer other")
    assert (status, json.loads(answer)["error"]["code"]) == (401, "invalid_api_key")
    assert post(endless, "/api/chat", body(), "Authorization: Bearer")[0] == 401
    with urllib.request.urlopen(endless.url + "/health", timeout=PATIENCE_SECONDS) as response:
        assert response.status == 200
    endless.key = "none"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        endless.get("/metrics")
    endless.key = "sesame"


def test_many_requests_at_once(served):
    def ask(number: int) -> int:
        return post(served, "/v1/chat/completions", body(max_tokens=4, seed=number, stream=number % 2 == 0))[0]

    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(ask, range(24))) == {200}
    assert served.metric("slots_busy") == served.metric("requests_waiting") == 0


def test_the_metrics_are_prometheuss(served):
    families = {family.name: family for family in text_string_to_metric_families(served.get("/metrics").decode())}
    assert families["tritgguf_slots"].samples[0].value == 4
    assert families["tritgguf_slots"].samples[0].labels == {"model": "demo"}
    assert families["tritgguf_requests"].type == "counter"
    assert json.loads(served.get("/health")) == {"status": "ok"}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_mid_stream(caller, number, code):
    with serve(caller, "--slots", "1", "--ctx", "30000", "--threads", "1", "--host", "0.0.0.0") as served:
        served.url = served.url.replace("0.0.0.0", "127.0.0.1")
        request = urllib.request.Request(f"{served.url}/api/version", headers={"Host": "my-machine"})
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            assert response.status == 200  # on all addresses, it can't know its names
        streams = [
            begin(served, stream=True),
            served.post(CHAT, body(**NEVER_ENDING)),
            served.post("/api/chat", {**body(model="caller"), "options": {"num_predict": 400}}),
        ]
        began = streams[0].recv(1000)
        assert b"200 OK" in began
        served.wait_until("requests_waiting", 2)
        served.process.send_signal(number)
        with streams[0]:
            rest = began + b"".join(iter(lambda: streams[0].recv(65536), b""))
        assert b"the server is shutting down" in rest
        for stream in streams[1:]:
            assert answer_of(stream)[0] == 503
        assert served.process.wait(PATIENCE_SECONDS) == code


def test_what_cannot_be_served_is_one_line(demo, served, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITGGUF_CACHE", str(tmp_path / "cache"))
    port = str(served.address[1])
    for arguments, part in (
        ([tmp_path / "none.gguf"], "none.gguf"),
        ([demo, "--port", port], f"127.0.0.1:{port} can't be listened on"),
        ([ROOT / "vendor" / "demo-model", "--port", port], f"127.0.0.1:{port} can't be listened on"),
        ([demo, demo, "--port", "0"], "another model is called demo too"),
        ([demo, "--ctx", "100000", "--port", "0"], "100000"),
        ([demo, "--api-key", " ", "--port", "0"], "API key"),
    ):
        code, _, errors = run_captured(monkeypatch, capsys, "serve", *arguments)
        assert code == 1
        assert errors.count("\n") == 1
        assert part in errors
    assert not (tmp_path / "cache").exists()  # the folder wasn't converted for a port that is taken


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/api/chat"])
def test_a_refused_request_gets_no_slot(served, path):
    before = served.metric("requests_total")
    for fields in ({"stream": "yes"}, {"stream_options": 5, "stream": True}):
        if path != "/api/chat" or "stream_options" not in fields:
            assert post(served, path, body(prompt="Hello", **fields))[0] == 400
    assert served.metric("requests_total") == before


def test_an_origin_that_is_no_address(served):
    status, answer = post(served, CHAT, body(), "Origin: http://[")
    assert status == 403
    assert "may not use this server" in json.loads(answer)["error"]["message"]


def test_a_model_whose_file_is_gone_is_still_listed(demo, tmp_path):
    path = tmp_path / "copy.gguf"
    path.write_bytes(demo.read_bytes())
    with open_models([("copy", path)], Capacity(n_slots=1, n_ctx=64, n_threads=1)) as models:
        size = path.stat().st_size
        path.unlink()
        (listed,) = json.loads(asyncio.run(Ollama(State(Service(models, None, seconds=1))).tags(None)).body)["models"]
    assert (listed["name"], listed["size"]) == ("copy:latest", size)


def test_the_size_of_a_split_model_is_that_of_all_parts(tmp_path):
    first = convert(ROOT / "vendor" / "demo-model", tmp_path / "demo.gguf", type="tq2_0", max_shard_size="1M").out
    parts = sorted(tmp_path.glob("*.gguf"))
    assert first == parts[0]
    assert len(parts) > 1
    with open_models([("demo", first)], Capacity(n_slots=1, n_ctx=64, n_threads=1)) as models:
        api = Ollama(State(Service(models, None, seconds=1)))
        for answer in (api.tags(None), api.ps(None)):
            (listed,) = json.loads(asyncio.run(answer).body)["models"]
            assert listed["size"] == sum(part.stat().st_size for part in parts)


def test_a_large_schema_holds_up_nobody(demo, monkeypatch):
    """Its grammar isn't made before the event loop has done something else meanwhile."""
    loops = []

    def when_the_loop_went_on(schema):
        went_on = threading.Event()
        loops[-1].call_soon_threadsafe(went_on.set)
        assert went_on.wait(PATIENCE_SECONDS), "the event loop waits for the grammar"
        return grammar_of_schema(schema)

    monkeypatch.setattr("tritgguf.runtime.server.openai_requests.grammar_of_schema", when_the_loop_went_on)
    schema = {"type": "object", "properties": {"end": {"type": "number", "minimum": 1}}, "required": ["end"]}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    requests = {
        "chat_completions": body(response_format=wanted),
        "completions": {"model": "demo", "prompt": "x", "response_format": wanted},
        "chat": body(format=schema),
        "generate": {"model": "demo", "prompt": "x", "format": schema},
    }

    async def answer(handler, data) -> None:
        async def receive():
            return {"type": "http.request", "body": json.dumps(data).encode(), "more_body": False}

        loops.append(asyncio.get_running_loop())
        await handler(Request({"type": "http", "headers": []}, receive))

    with open_models([("demo", demo)], Capacity(n_slots=1, n_ctx=64, n_threads=1)) as models:
        state = State(Service(models, None, seconds=1))
        for name, data in requests.items():
            api = OpenAI(state) if "completions" in name else Ollama(state)
            with pytest.raises(RequestError, match="minimum"):
                asyncio.run(answer(getattr(api, name), data))
    assert len(loops) == len(requests)
