"""Clients that connect and send nothing, or slowly, or too often: others are answered all the same."""

from __future__ import annotations

import json
import resource
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from tests.served import PATIENCE_SECONDS, Served, serve
from tritgguf.runtime.server.connections import OTHER_FILES, allowed_connections

PARTS_OF_REQUESTS = [
    b"",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{",
]
NEVER_ENDING: dict[str, object] = {"model": "caller", "prompt": "a", "max_tokens": 29_000, "logit_bias": {"258": -100}}
NEVER_ENDING |= {"temperature": 0, "stream": True}
FEW = 1 + 0 + 5  # one slot, no queue, five more


def limited(**limits: float) -> list[str]:
    return ["tests.runtime.server.limited", json.dumps(limits)]


@pytest.fixture(scope="module")
def small(caller) -> Iterator[Served]:
    options = ("--slots", "1", "--queue", "0", "--threads", "1", "--ctx", "30000")
    with serve(caller, *options, program=limited(spare=5)) as running:
        yield running


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def closed_at_last(connection: socket.socket, trickle: bytes = b"") -> bytes:
    """Return what comes until the server hangs up, which gets a bit more of the request meanwhile."""
    data = b""
    connection.settimeout(0.05 if trickle else PATIENCE_SECONDS)
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        try:
            part = connection.recv(65536)
            if not part:
                return data
            data += part
        except TimeoutError:
            connection.sendall(trickle)
        except ConnectionError:
            return data
    raise AssertionError("the server keeps the connection")


@pytest.mark.parametrize("begun", PARTS_OF_REQUESTS)
def test_clients_that_send_nothing_more_keep_nobody_out(small, begun):
    with serve_endless(small) as stream:
        waiting = []
        for _ in range(40):
            waiting.append(small.connect())
            waiting[-1].sendall(begun)
        for path in ("/health", "/metrics", "/v1/models"):
            small.get(path)
        with small.post("/v1/completions", {**NEVER_ENDING, "stream": False}, "Connection: close") as refused:
            assert b" 503 " in closed_at_last(refused).partition(b"\r\n")[0]  # the queue is full, and says so
        left = [is_open(connection) for connection in waiting]
        assert sum(left) < FEW
        assert left == sorted(left)  # the oldest had to go
        assert b"data: " in stream.recv(65536)
    for connection in waiting:
        connection.close()


def serve_endless(served: Served) -> socket.socket:
    served.wait_until("slots_busy", 0)  # of a client that has hung up
    connection = served.post("/v1/completions", NEVER_ENDING)
    assert b"200 OK" in connection.recv(100)
    return connection


@pytest.fixture(scope="module")
def hasty(caller) -> Iterator[Served]:
    options = ("--slots", "1", "--threads", "1", "--ctx", "30000")
    with serve(caller, *options, program=limited(idle_seconds=0.5, body_seconds=0.5)) as running:
        yield running


@pytest.mark.parametrize("begun", PARTS_OF_REQUESTS[:2])
@pytest.mark.parametrize("trickle", [b"", b"X-More: 1\r\n"])
def test_a_request_that_does_not_come(hasty, begun, trickle):
    with hasty.connect() as connection:
        connection.sendall(begun)
        answer = closed_at_last(connection, trickle if begun else b"")
        assert answer == b"" or b" 400 " in answer  # a head that is too large


def test_a_body_that_does_not_come(hasty):
    with hasty.connect() as connection:
        connection.sendall(PARTS_OF_REQUESTS[2].replace(b"100", b"1000000"))
        assert b" 408 " in closed_at_last(connection, b" ").partition(b"\r\n")[0]


def test_a_body_that_nobody_reads(hasty):
    with hasty.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 200 " in closed_at_last(connection, b" ").partition(b"\r\n")[0]


def test_an_answer_may_take_longer_than_a_request(hasty):
    with serve_endless(hasty) as stream, hasty.connect() as idle:
        assert closed_at_last(idle) == b""
        assert hasty.metric("slots_busy") == 1
        assert b"data: " in stream.recv(65536)


def test_a_connection_has_many_requests(small):
    with urllib.request.urlopen(small.url + "/health", timeout=PATIENCE_SECONDS) as response:
        assert response.status == 200
    with small.connect() as connection:
        for at_once in (1, 1, 2):
            connection.sendall(at_once * b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            data = b""
            while data.count(b'{"status":"ok"}') < at_once:
                part = connection.recv(65536)
                assert part, "the server hung up"
                data += part


def test_no_more_connections_than_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
        assert allowed_connections(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300 + OTHER_FILES
        assert allowed_connections(100) == 100
        if before[1] != resource.RLIM_INFINITY:
            assert allowed_connections(2 * before[1]) == before[1] - OTHER_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
