"""Files that only another program runs: every command that would run or send one says to convert it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import foreign_gguf
from tests.command_line import run_captured


@pytest.mark.parametrize("name", ["Q2_0-g128", "STQ1_0", "I2_S", "IQ2_BN"])
@pytest.mark.parametrize(
    "command",
    [["chat", "--prompt", "x"], ["quantize", "folder", "--dequantize"], ["ollama", "--check"], ["ollama", "a-name"]],
)
def test_a_foreign_type_is_named(name: str, command: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    kind = foreign_gguf.KINDS[name]
    base = foreign_gguf.base_file(tmp_path / "base.gguf")
    source = foreign_gguf.add_tensors(base, tmp_path / "in.gguf", foreign_gguf.model(kind)[0])
    arguments = [tmp_path / word if word == "folder" else word for word in command[1:]]
    code, _, errors = run_captured(monkeypatch, capsys, command[0], source, *arguments)
    assert (code, errors.count("\n")) == (1, 1), errors
    assert f"9 tensors such as token_embd.weight are {name} (type" in errors
    assert "convert it first: tritgguf convert in.gguf OUT.gguf" in errors
