"""When `convert` and `inspect` start the runtime for a GGUF source: only to compare token ids of a file they write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import build
from tritgguf.converter import convert
from tritgguf.converter.gguf_io.reader import read_gguf

# Runs the program with the arguments that follow, and tells on the last line what Python's audit events saw.
WATCHED = """
import json, runpy, sys
started = []
def hook(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"):
        started.append(event)
sys.addaudithook(hook)
sys.argv[0] = "tritgguf"
try:
    runpy.run_module("tritgguf", run_name="__main__")
except SystemExit as end:
    code = end.code
assert "huggingface_hub" not in sys.modules  # which only a name on the hub needs
print(json.dumps([code, "subprocess.Popen" in started, bool(started), "llama_cpp" in sys.modules]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return convert(build("llama-tied", folder / "model"), folder / "source.gguf", "f16", check=False).out


def watched(*arguments: object) -> list[object]:
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_planning_and_inspecting_start_nothing(source: Path) -> None:
    for arguments in (
        ("convert", source, "--dry-run"),
        ("convert", source, "--dry-run", "--json"),
        ("inspect", source),
    ):
        assert watched(*arguments) == [0, False, False, False], arguments


def test_no_check_starts_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert watched("convert", source, out, "--no-check", "--type", "tq2_0", "--allow-lossy") == [0, False, False, False]
    assert read_gguf(out).value("tokenizer.ggml.tokens")


def test_the_comparison_starts_children(source: Path, tmp_path: Path) -> None:
    assert watched("convert", source, tmp_path / "out.gguf", "--type", "f16") == [0, True, True, False]
