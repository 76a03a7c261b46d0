"""What `tritgguf doctor` tells of the processor, the hub and Ollama, against real servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.ollama_server import free_port, ollama_server
from tritgguf.runtime.measure.doctor import surroundings
from tritgguf.runtime.measure.doctor.processor import instructions


def test_instructions_that_a_build_does_not_use(monkeypatch) -> None:
    monkeypatch.setattr("tritgguf.runtime.measure.doctor.processor.processor", lambda: "flags : avx avx2 fma avx512f")
    found = instructions("CUDA : ARCHS = 800 | CPU : AVX = 1 | AVX2 = 1 | FMA = 0 | OPENMP = 1 | REPACK = 1 |")
    assert (found.used, found.unused) == (("AVX", "AVX2"), ("FMA", "AVX512"))


@contextmanager
def hub(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "SECONDS", 0.2)
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "found", "line"), [(200, True, "answers"), (404, True, "answers"), (503, False, "with an error, 503")]
)
def test_a_hub_that_answers(status: int, found: bool, line: str, monkeypatch) -> None:
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with hub(status) as place:
        monkeypatch.setenv("HF_ENDPOINT", f"http://me:secret@{place}/")
        answer = surroundings.hub()
    assert answer.found == found
    assert answer.line.startswith(f"http://{place} answers")
    assert answer.line.endswith(line)


@pytest.mark.usefixtures("_short")
def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, silent: str) -> None:
    for endpoint, line in (
        (f"http://127.0.0.1:{free_port()}", "can't be reached (Connection refused); models on this disk work"),
        (f"http://{silent}", "can't be reached (no answer for 0.2 seconds)"),
        ("http://no-such-host.invalid", "can't be reached (its name isn't known"),
        ("http://a:b:c", "can't be reached (InvalidURL)"),
        ("http://[::1", "can't be reached (ValueError)"),
        ("ftp://hub", "HF_ENDPOINT isn't an address that begins with http:// or https://"),
    ):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        answer = surroundings.hub()
        assert not answer.found
        assert line in answer.line
        assert "\n" not in answer.line


def test_an_offline_hub_is_not_asked(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert surroundings.hub().line == "not asked, since HF_HUB_OFFLINE is set"


def test_a_question_without_an_answer_ends(monkeypatch) -> None:
    monkeypatch.setattr(surroundings, "SECONDS", 0.01)
    never = threading.Event()

    def ask() -> surroundings.Answer:
        never.wait()
        return surroundings.Answer(True, "at last")

    assert surroundings.Asking(ask, "no answer").answer() == surroundings.Answer(False, "no answer")
    never.set()


def test_ollama_that_runs(monkeypatch) -> None:
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        answer = surroundings.ollama()
    assert answer.found
    assert answer.line == f"{server.version} at http://{server.address.removeprefix('http://')}"


@pytest.mark.usefixtures("_short")
def test_ollama_that_does_not(monkeypatch, silent: str, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert surroundings.ollama().line.startswith("no server, no program (http://127.0.0.1:")
    (tmp_path / "ollama").write_text("")
    (tmp_path / "ollama").chmod(0o755)
    assert surroundings.ollama().line.startswith("the program is here, but no server runs: start `ollama serve`")
    monkeypatch.setenv("OLLAMA_HOST", silent)
    assert "didn't answer /api/version for 0.2 seconds" in surroundings.ollama().line
    monkeypatch.setenv("OLLAMA_HOST", "ftp://me:secret@place")
    assert surroundings.ollama().line == "OLLAMA_HOST begins with ftp://; expected http:// or https:// before the host"
