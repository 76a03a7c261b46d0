"""The command line, run inside the test's process."""

from __future__ import annotations

import pytest

from tritgguf.runtime.cli import main as cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `tritgguf ARGUMENTS` and return its exit code."""
    monkeypatch.setattr("sys.argv", ["tritgguf", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def run_captured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Run `tritgguf ARGUMENTS` and return its exit code, standard output and standard error."""
    code = run(monkeypatch, *arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err
