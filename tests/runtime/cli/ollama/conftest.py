"""What the tests of `tritgguf ollama` share: no Ollama but the one that a test starts, and tiny files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import checkpoints
from tests.ollama_server import free_port
from tritgguf.converter import convert
from tritgguf.converter.ollama.repack import repack


@pytest.fixture(autouse=True)
def _no_ollama_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever runs on this machine, the tests don't talk to it."""
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tritgguf.runtime.ollama.address.DEFAULT_PORT", free_port())


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TQ2_0 file with a ChatML template."""
    folder = tmp_path_factory.mktemp("ternary")
    return convert(checkpoints.build("llama-tied", folder / "model"), folder / "tiny.gguf", "tq2_0", check=False).out


@pytest.fixture
def file(ternary: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(ternary.read_bytes())
    return path


@pytest.fixture(scope="module")
def _exact(ternary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repack(ternary, tmp_path_factory.mktemp("exact") / "tiny.gguf").out


@pytest.fixture
def exact(_exact: Path, tmp_path: Path) -> Path:
    """The same model as exact Q2_K, which needs no repacking."""
    path = tmp_path / "exact.gguf"
    path.write_bytes(_exact.read_bytes())
    return path
