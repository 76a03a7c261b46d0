"""Standard output that is full, closed, not read to its end, or of another encoding: no traceback, a true exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import build

COMMANDS = pytest.mark.parametrize("command", ["--version", "--help", "inspect", "convert"])
LINUX = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build("llama-gqa", tmp_path_factory.mktemp("model"))


def arguments(command: str, folder: Path) -> list[str]:
    options = {"inspect": [str(folder)], "convert": [str(folder), "--dry-run"]}
    return [sys.executable, "-m", "tritgguf", command, *options.get(command, [])]


def shell(command: str, folder: Path, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f'"$@" {redirection}'
    words = ["bash", "-c", script, "bash", *arguments(command, folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@LINUX
@COMMANDS
def test_a_full_standard_output_is_one_line(command, folder) -> None:
    done = shell(command, folder, "> /dev/full")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert errors == ["error: standard output can't be written: No space left on device"]


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a shell does")
@COMMANDS
def test_a_closed_standard_output_is_one_line(command, folder) -> None:
    done = shell(command, folder, ">&-")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert errors == ["error: standard output can't be written: Bad file descriptor"]


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a shell does")
def test_a_reader_that_goes_away_ends_the_command_silently(folder) -> None:
    done = shell("inspect", folder, "| true; exit ${PIPESTATUS[0]}")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == []


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a shell does")
def test_no_stream_at_all_is_no_reason_to_fail_in_another_way(folder, tmp_path) -> None:
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "tritgguf", "convert", str(folder), str(out)]
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], timeout=120)
    assert done.returncode == 1  # what it prints at its end can't be written
    assert out.read_bytes()[:4] == b"GGUF"
    with_output = [*command, "--force", "--json"]
    done = subprocess.run(
        ["bash", "-c", '"$@" 2>&-', "bash", *with_output], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert done.stdout.startswith("{")
    assert done.stdout.count("\n") == 1  # no note has strayed here


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_an_encoding_lacks_is_replaced(encoding, tmp_path) -> None:
    model = build("llama-gqa", tmp_path / "模型")
    done = shell("convert", model, "", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "模型.gguf"
    command = [sys.executable, "-m", "tritgguf", "convert", str(model), str(out), "--no-check"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    written = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert written.returncode == 0, written.stderr
    assert b"??.gguf: " in written.stdout


def test_a_name_that_is_not_unicode_is_replaced(folder, tmp_path) -> None:
    out = os.fsencode(tmp_path) + b"/\xff.gguf"
    command = [sys.executable, "-m", "tritgguf", "convert", str(folder), out, "--no-check"]
    written = subprocess.run(command, capture_output=True, timeout=120)
    assert written.returncode == 0, written.stderr
    assert b"/?.gguf: " in written.stdout
