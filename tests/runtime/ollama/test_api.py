"""The client against the server of the tests."""

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
