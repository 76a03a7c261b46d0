"""Other machines: two real servers on this one. Oracles: the same model without them, and llama.cpp's log."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

import tritgguf.converter
import tritgguf.runtime
from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import backend, rpc

DEMO = ROOT / "vendor" / "demo-model"
PATIENCE_SECONDS = 120  # ends what hangs
BUILT = rpc.is_built(backend.ggml())
with_rpc = pytest.mark.skipif(
    not BUILT or backend.supports_gpu(), reason="needs llama.cpp with RPC and without GPUs: make test BACKEND=rpc"
)
PROMPT = "Who are you? What do you like?"

# A program that computes with a server once it is told to.
OPENED = """
import sys
from tritgguf.runtime.cli.native_library import prepare_native_library
import tritgguf.runtime
prepare_native_library()
with tritgguf.runtime.open(sys.argv[1], n_ctx=64, rpc=sys.argv[2:]) as session:
    print("open", flush=True)
    sys.stdin.readline()
    session.evaluate(session.tokenize("Who are you?"))
    session.context.logits()
"""
# A program that finds the servers' devices as if they were GPUs of its own, and says where a model's layers go.
AS_GPUS = """
import ctypes, json, re, sys
from tritgguf.runtime.engine import backend, placement, rpc
ggml, pointer = backend.ggml(), ctypes.c_void_p
path, *servers = sys.argv[1:]
add = ctypes.CFUNCTYPE(pointer, ctypes.c_char_p)(rpc._function(ggml, b"ggml_backend_rpc_add_server"))
for server in servers:
    ggml.function("ggml_backend_register", None, pointer)(add(server.encode()))
lines = []
backend._log.write = lambda level, text: lines.append(text.decode())
for line in sys.stdin:
    lines.clear()
    try:
        backend.Model(path, placement=placement.Placement(**json.loads(line))).close()
    except Exception as error:
        lines = [str(error)]
    print(json.dumps(re.findall(r"layer +\\d+ assigned to device (\\w+)", "".join(lines)) or lines), flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def server(*options: str, serves: str = "CPU") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A `tritgguf rpc-server` that listens and serves this device, by its address."""
    port = free_port()
    command = [sys.executable, "-m", "tritgguf", "rpc-server", "--port", str(port), "--threads", "1", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith(f"serves {serves} ("), line
            address = f"127.0.0.1:{port}"
            assert f"--rpc {address};" in line
            wait_for(address)
            yield address, process
        finally:
            process.kill()


def wait_for(address: str) -> None:
    """Wait until a server answers: it says so before it listens."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return rpc.check_server(address)
        except EngineError:
            assert time.monotonic() < end, address
            time.sleep(0.02)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        (one, _), (other, _) = (stack.enter_context(server()) for _ in range(2))
        yield one, other


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("rpc")

    def converted(type_name: str) -> Path:
        path = folder / f"{type_name}.gguf"
        if not path.exists():
            tritgguf.converter.convert(DEMO, path, type=type_name, check=False)
        return path

    return converted


def answer(path: Path, **where: object) -> list[int]:
    """Return the ids of a greedy answer."""
    with tritgguf.runtime.open(path, n_threads=1, n_ctx=256, **where) as session:
        ids = prompt = session.tokenize(PROMPT)
        for _ in range(24):
            session.evaluate(ids)
            ids = [*ids, int(session.context.logits(0).argmax())]
        return ids[len(prompt) :]


# --- two servers ------------------------------------------------------------------------------------------------------


@with_rpc
@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0", "q2_k", "f16"])
def test_answers_are_the_same(type_name: str, demo, servers) -> None:
    expected = answer(demo(type_name))
    assert answer(demo(type_name), rpc=servers) == expected
    assert answer(demo(type_name), rpc=servers, n_gpu_layers=3, tensor_split=(2, 1)) == expected


@with_rpc
@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0"])
def test_the_kernels_there_are_those_here(type_name: str, demo, servers) -> None:
    """Bit by bit, which llama.cpp's own kernels and tritgguf's aren't."""

    def logits(**where: object) -> np.ndarray:
        with tritgguf.runtime.open(demo(type_name), n_threads=1, n_ctx=64, **where) as session:
            return session.logits(session.tokenize(PROMPT))

    assert np.array_equal(logits(), logits(rpc=servers))


@with_rpc
def test_servers_get_their_shares(demo, servers, monkeypatch, capfd) -> None:
    path = demo("tq2_0")

    def layers(**where: object) -> list[str]:
        """Which device each layer is on, by llama.cpp's log."""
        monkeypatch.setattr(backend._log, "to_stderr", True)
        tritgguf.runtime.open(path, n_threads=1, n_ctx=64, **where).close()
        monkeypatch.setattr(backend._log, "to_stderr", False)
        return re.findall(r"layer +\d+ assigned to device (\w+)", capfd.readouterr().err)

    n_layers = len(layers())
    assert set(layers()) == {"CPU"}
    names = layers(rpc=servers, tensor_split=(1, 0))
    assert set(names) == {names[0]}
    assert names[0].startswith("RPC")
    assert len(set(layers(rpc=servers, tensor_split=(1, 1)))) == 2
    some = layers(rpc=servers[:1], n_gpu_layers=2)
    assert some == ["CPU"] * (n_layers - 2) + [names[0]] * 2
    assert set(layers(rpc=servers, n_gpu_layers=0)) == {"CPU"}


@with_rpc
def test_layers_go_to_the_gpus_that_are_asked_for(demo, servers) -> None:
    asked = [{}, {"n_gpu_layers": 0}, {"main_gpu": 0}, {"main_gpu": 1}, {"tensor_split": (0, 1)}, {"main_gpu": 2}]
    done = subprocess.run(
        [sys.executable, "-c", AS_GPUS, str(demo("tq2_0")), *servers],
        input="".join(f"{json.dumps(one)}\n" for one in asked),
        capture_output=True,
        text=True,
        check=True,
    )
    both, none, first, second, split, (error,) = map(json.loads, done.stdout.splitlines())
    assert set(both) == {"RPC0", "RPC1"}
    assert [set(places) for places in (none, first, second, split)] == [{"CPU"}, {"RPC0"}, {"RPC1"}, {"RPC1"}]
    assert error == "there is no GPU 2 here, expected one of 0 (RPC0), 1 (RPC1)"


@with_rpc
def test_two_models_share_servers_and_leave_them(demo, servers) -> None:
    path = demo("tq2_0")
    with tritgguf.runtime.open(path, n_ctx=64, rpc=servers), tritgguf.runtime.open(path, n_ctx=64, rpc=servers[:1]):
        pass
    for address in servers:
        wait_for(address)


@with_rpc
def test_a_server_that_another_program_uses(demo, servers, monkeypatch) -> None:
    with tritgguf.runtime.open(demo("tq2_0"), n_ctx=64, rpc=servers[:1]):
        monkeypatch.setattr(rpc, "ANSWER_SECONDS", 0.2)
        with pytest.raises(
            EngineError, match=r"no answer within 0.2 seconds; a server works for one program at a time"
        ):
            rpc.check_server(servers[0])
    wait_for(servers[0])


@with_rpc
def test_a_split_has_a_share_for_each_device(demo, servers) -> None:
    with pytest.raises(
        EngineError, match=r"tensor split is 1,2,3, expected 2 shares: for RPC\d+ \(127.0.0.1:\d+\), RPC"
    ):
        tritgguf.runtime.open(demo("tq2_0"), rpc=servers, tensor_split=(1, 2, 3))


@with_rpc
def test_the_command_line(demo, servers, monkeypatch, capsys) -> None:
    ask = ("chat", demo("tq2_0"), "--prompt", "Who are you?", "--temperature", "0", "--max-tokens", "8")
    plain = run_captured(monkeypatch, capsys, *ask)
    assert plain[0] == 0
    assert run_captured(monkeypatch, capsys, *ask, "--rpc", ",".join(servers)) == plain
    _, _, told = run_captured(monkeypatch, capsys, *ask, "--rpc", ",".join(servers), "--gpu-layers", "2", "--stats")
    assert re.search(
        rf"^layers: the last 2 of \d+ on RPC\d+ \({servers[0]}\) and RPC\d+ \({servers[1]}\), the others on the CPU$",
        told,
        re.MULTILINE,
    )
    if not backend.supports_gpu():
        code, out, errors = run_captured(monkeypatch, capsys, *ask, "--rpc", servers[0], "--main-gpu", "0")
        assert (code, out) == plain[:2]
        assert errors.startswith("note: --main-gpu does nothing: ")


@with_rpc
def test_a_perplexity_is_the_same(demo, servers, monkeypatch, capsys) -> None:
    ask = ("eval", demo("tq2_0"), "--chunks", "1", "--ctx", "64", "--threads", "1", "--json")

    def perplexity(*more: str) -> float:
        code, out, _ = run_captured(monkeypatch, capsys, *ask, *more)
        assert code == 0
        (file,) = json.loads(out)["files"]
        return float(file["ppl"])

    assert perplexity("--rpc", ",".join(servers)) == perplexity()


@with_rpc
def test_a_server_that_ends_is_one_line(demo) -> None:
    with server() as (address, process):
        command = [sys.executable, "-c", OPENED, str(demo("tq2_0")), address]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout
            assert client.stdout.readline() == "open\n"
            process.kill()
            process.wait()
            _, errors = client.communicate("go on\n", timeout=PATIENCE_SECONDS)
    assert (client.returncode, errors.count("\n")) == (1, 1)
    assert errors.startswith("error: llama.cpp stopped itself: ")
    assert "the cause may be a server of --rpc that ended: " in errors


@with_rpc
def test_ctrl_c_ends_a_server(unmeasured) -> None:
    with server() as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGINT


# --- without servers --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(BUILT, reason="this llama.cpp has the RPC backend")
def test_a_build_without_it(demo, monkeypatch, capsys) -> None:
    said = (1, "", f"error: {rpc.MISSING}\n")
    assert run_captured(monkeypatch, capsys, "rpc-server", "--port", free_port()) == said
    ask = ("chat", demo("tq2_0"), "--prompt", "Who are you?", "--rpc", "127.0.0.1:50052")
    assert run_captured(monkeypatch, capsys, *ask) == said


def test_an_address_to_listen_on(monkeypatch, capsys) -> None:
    for host in ("localhost", "::1", "1.2.3"):
        code, _, errors = run_captured(monkeypatch, capsys, "rpc-server", "--host", host)
        assert (code, errors.count("\n")) == (1, 1)
        assert f"--host is {host!r}, expected an IPv4 address" in errors
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, errors = run_captured(monkeypatch, capsys, "rpc-server", "--port", port)
        assert (code, errors.count("\n")) == (1, 1)
        assert f"127.0.0.1:{port}: can't listen there (" in errors


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server that answers the first connection so, and then ends it; with None, it waits for the other side."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def respond() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(33, socket.MSG_WAITALL)
                if answer is None:
                    connection.recv(1)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=respond)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"", "isn't an RPC server of llama.cpp; start `tritgguf rpc-server` there"),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "isn't an RPC server of llama.cpp"),
        (struct.pack("<Q3B25x", 28, 3, 6, 1), "has version 3.6.1 of llama.cpp's RPC protocol, expected 7.0;"),
        (struct.pack("<Q3B25x", 28, 7, 1, 0), "has version 7.1.0 of llama.cpp's RPC protocol, expected 7.0;"),
        (None, "no answer within 0.2 seconds"),
    ],
)
def test_what_isnt_such_a_server(reply: bytes | None, said: str, monkeypatch) -> None:
    if reply is None:
        monkeypatch.setattr(rpc, "ANSWER_SECONDS", 0.2)
    with answering(reply) as address, pytest.raises(EngineError) as error:
        rpc.check_server(address)
    assert str(error.value).startswith(f"{address}: {said}")


def test_a_server_that_cant_be_reached() -> None:
    for address in (f"127.0.0.1:{free_port()}", "no-such-host.invalid:50052"):
        with pytest.raises(
            EngineError, match=rf"{address}: can't be reached \(.+\); start `tritgguf rpc-server` there"
        ):
            rpc.check_server(address)
