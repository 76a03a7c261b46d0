"""-q, -v and -h, which every command has, and completion in a real shell."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import checkpoints
from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.converter import convert
from tritgguf.runtime.cli.command import commands


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build("llama-tied", tmp_path_factory.mktemp("model") / "model")


LOSSY = ("--type", "tq2_0", "--no-check", "--embedding-type", "q8_0")  # a note tells that this rounds


def test_quiet_leaves_out_notes(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, loud, notes = run_captured(monkeypatch, capsys, "convert", model, tmp_path / "a.gguf", *LOSSY)
    assert code == 0
    assert notes.startswith("note: ")
    code, quiet, error = run_captured(monkeypatch, capsys, "convert", model, tmp_path / "a.gguf", *LOSSY, "-q")
    assert (code, quiet, error) == (1, "", f"error: {tmp_path / 'a.gguf'} exists already; add --force to replace it\n")
    code, quiet, error = run_captured(monkeypatch, capsys, "convert", model, tmp_path / "b.gguf", *LOSSY, "--quiet")
    assert (code, error) == (0, "")
    assert quiet.split(";")[1:] == loud.split(";")[1:]


def test_quiet_json_has_no_progress(model: Path, monkeypatch, capsys) -> None:
    for quiet in ([], ["-q"]):
        code, _, error = run_captured(monkeypatch, capsys, "convert", model, "--dry-run", "--json", *quiet)
        assert code == 0
        assert bool(error) != bool(quiet)


def test_verbose_tells_what_is_read_chosen_and_timed(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, details = run_captured(monkeypatch, capsys, "convert", model, tmp_path / "a.gguf", *LOSSY, "-v")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'a.gguf'}: ")
    assert details.startswith(f"reading {model}; ")
    assert re.search(r"^\d x blk\.\*\.attn_q\.weight: tq2_0, .+$", details, re.M)
    assert re.search(r"^writing: [\d.]+ MB in [\d.]+ s$", details, re.M)
    assert re.search(r"^took [\d.]+ s in all\n\Z", details, re.M)


def test_a_quiet_and_a_verbose_chat(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    file = convert(model, tmp_path / "tiny.gguf", "f16", check=False).out
    arguments = ("chat", file, "--temperature", "0", "--max-tokens", "2", "--prompt", "a", "--prompt", "b")
    code, expected, notes = run_captured(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "> a\n" in notes
    code, out, notes = run_captured(monkeypatch, capsys, *arguments, "-q")
    assert (code, out) == (0, expected)
    assert "> a" not in notes
    code, out, notes = run_captured(monkeypatch, capsys, *arguments, "-v")
    assert (code, out) == (0, expected)
    assert f"loaded {file} in " in notes
    assert "sampling: temperature 0.0" in notes


def test_both_at_once_is_wrong_usage(model: Path, monkeypatch, capsys) -> None:
    code, _, error = run_captured(monkeypatch, capsys, "inspect", model, "-q", "-v")
    assert code == 2
    assert "give only one of both" in error


@pytest.mark.parametrize("name", ["", *commands()])
def test_h_is_help(name: str, monkeypatch, capsys) -> None:
    arguments = [name] if name else []
    code, short, _ = run_captured(monkeypatch, capsys, *arguments, "-h")
    assert (code, short) == run_captured(monkeypatch, capsys, *arguments, "--help")[:2]
    assert "Usage: " in short


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tritgguf", "-h"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "doctor" in done.stdout


# --- completion ------------------------------------------------------------------------------------------------------

PROGRAM = Path(sys.executable).with_name("tritgguf")
BASH = shutil.which("bash") or ""
in_bash = pytest.mark.skipif(not (BASH and PROGRAM.exists()), reason="needs bash and the installed command")


@in_bash
def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    """The script is the program's own; bash calls the function in it as when Tab is pressed."""
    code = f"""
        PATH={PROGRAM.parent}:$PATH
        eval "$(_TRITGGUF_COMPLETE=source_bash tritgguf)"
        complete -p tritgguf
        completed() {{ COMP_WORDS=("$@"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _tritgguf_completion tritgguf
            echo "${{COMPREPLY[@]}}"; }}
        completed tritgguf do
        completed tritgguf convert --for
        completed tritgguf convert --for v
        completed tritgguf convert --type tq
        completed tritgguf quantize --scheme bit
    """
    done = subprocess.run([BASH, "--norc", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    registered, *completions = done.stdout.splitlines()
    assert registered == "complete -o default -F _tritgguf_completion tritgguf"
    assert completions == ["doctor", "--for --force", "vulkan", "tq1_0 tq2_0", "bitnet"]
    assert done.stderr == ""


@in_bash
def test_completion_is_installed_for_the_shell_that_asks(tmp_path: Path) -> None:
    """On a terminal, since that is where people do it; in a home folder of its own."""
    parent, child = pty.openpty()
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    command = "tritgguf --install-completion; echo code $?"
    with subprocess.Popen(
        [BASH, "--norc", "-c", command], stdin=child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as shell:
        out, _ = shell.communicate()
    os.close(parent)
    os.close(child)
    assert out.decode().strip().endswith("code 0"), out
    assert (tmp_path / ".bash_completions" / "tritgguf.sh").read_text().strip().endswith("tritgguf")
    assert ".bash_completions/tritgguf.sh" in (tmp_path / ".bashrc").read_text()
