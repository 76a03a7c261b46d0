"""Run `tritgguf ollama` against a server that plays Ollama's API, and check what it says."""

from __future__ import annotations

from pathlib import Path

from tests.command_line import run_captured
from tests.ollama_server import State, ollama_server


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, _, err = result
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, len(errors)) == (1, 1), err
    assert errors[0].startswith("error: ")
    for part in parts:
        assert part in errors[0]


def refused(file: Path, monkeypatch, capsys, *options: str, **settings: object) -> tuple[tuple[int, str, str], State]:
    with ollama_server(**settings) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        return run_captured(monkeypatch, capsys, "ollama", file, "tiny", *options), server
