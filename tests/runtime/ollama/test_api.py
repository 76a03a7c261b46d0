"""Ollama's address, and the client against the server of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from tests.ollama_server import ollama_server
from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.address import Address
from tritgguf.runtime.ollama.api import Ollama, digest_of
from tritgguf.runtime.ollama.connection import NotRunningError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:5678", "http://1.2.3.4:5678"),
        (":5678", "http://127.0.0.1:5678"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:8443/ollama/", "https://example.org:8443/ollama"),
        ("example.org/", "http://example.org:11434"),
        (" 'localhost:80' ", "http://localhost:80"),
        ('"localhost"', "http://localhost:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::]:8000", "http://[::1]:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("localhost:66000", "http://localhost:11434"),
        ("localhost:port", "http://localhost:11434"),
        ("https://localhost:", "https://localhost:443"),
    ],
)
def test_the_forms_of_ollama_host(text: str, address: str) -> None:
    assert str(Address(text)) == address


def test_another_scheme_is_refused() -> None:
    with pytest.raises(OllamaError, match="OLLAMA_HOST is 'ftp://x'; expected http:// or https://"):
        Address("ftp://x")


def test_ollama_host_is_read_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "example.org:1")
    assert str(Ollama().address) == "http://example.org:1"


def test_a_blob_arrives_whole_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(np.random.default_rng(5).bytes(3_500_001))
    steps: list[tuple[str, int, int]] = []
    with ollama_server() as server:
        client = Ollama(Address(server.address))
        digest = digest_of(path, lambda *step: steps.append(step))
        assert not client.has_blob(digest)
        client.send_blob(path, digest, lambda *step: steps.append(step))
        assert client.has_blob(digest)
        assert server.blobs[digest] == path.read_bytes()
        with pytest.raises(OllamaError, match="digest mismatch, expected"):
            client.send_blob(path, f"sha256:{'0' * 64}")
    assert ("hashing", 3_500_001, 3_500_001) in steps
    assert ("sending", 3_500_001, 3_500_001) in steps


def test_the_answer_of_a_server_that_stops_reading(tmp_path: Path) -> None:
    """The file is larger than the system's buffers: sending fails, and the server's answer gives the reason."""
    path = tmp_path / "blob"
    path.write_bytes(bytes(64_000_000))
    with ollama_server(fails="disk full, unread") as server:
        client = Ollama(Address(server.address))
        with pytest.raises(OllamaError, match=r"Ollama's disk is full \(write .*: no space left on device\)"):
            client.send_blob(path, digest_of(path))


def test_the_server_here_refuses_what_ollama_refuses(tmp_path: Path) -> None:
    """So the tests of the command fail if a ternary file isn't repacked, or a file isn't sent."""
    path = tmp_path / "tq2.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("x", np.zeros((1, 66), np.uint8), raw_dtype=GGMLQuantizationType.TQ2_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with ollama_server() as server:
        client = Ollama(Address(server.address))
        digest = digest_of(path)
        request = {"model": "x", "files": {"tq2.gguf": digest}, "parameters": {}}
        with pytest.raises(OllamaError, match="blob not found"):
            client.create(request)
        client.send_blob(path, digest)
        with pytest.raises(OllamaError, match='unsupported tensor "x" size overflows'):
            client.create(request)
        with pytest.raises(OllamaError, match="must be relative"):
            client.create({**request, "files": {"/tq2.gguf": digest}})
        assert server.models == {}


def test_no_server() -> None:
    with ollama_server() as server:
        address = server.address
    with pytest.raises(NotRunningError, match=rf"no Ollama at http://{address} \(Connection refused\)"):
        Ollama(Address(address)).version()
