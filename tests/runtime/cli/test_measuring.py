"""`tritgguf bench` and `tritgguf eval` on the command line: tables, JSON, files, and complaints of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from tests.command_line import run, run_captured
from tritgguf.runtime.engine.hardware import busy_seconds
from tritgguf.runtime.measure.base_logits import read_base

SHORT = ("--prompt-tokens", "4", "--generate", "2", "--threads", "1", "--repeat", "1")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("hello world, what is that you say now? " * 10)
    return path


def cells(out: str, first: str) -> list[str]:
    """The words of the one line that begins with the word `first`."""
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [first]]
    return line.split()


# --- bench ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no other program runs: the file that tells stands still."""
    monkeypatch.setattr("tritgguf.runtime.measure.bench.busy_seconds", lambda: 0.0)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system doesn't tell how busy it is")
def test_a_busy_machine_is_told(random_model: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tritgguf.runtime.measure.bench.busy_seconds", busy_seconds)
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        options = ("--prompt-tokens", 16, "--generate", 0, "--threads", 1, "--repeat", 300)
        code, out, err = run_captured(monkeypatch, capsys, "bench", random_model, *options, "--json")
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert code == 0
    busy = json.loads(out)["cores_busy_with_others"]
    assert 0.5 < busy < os.cpu_count() + 1
    note = f"note: other programs kept {busy:.1f} cores busy meanwhile, so the rates are too low"
    assert err.splitlines()[-1] == note


def test_a_table_of_rates(random_model: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "bench", random_model, *SHORT)
    assert (code, err) == (0, "")
    assert cells(out, "file") == ["file", "size", "test", "threads", "batch", "tokens/s", "min", "to", "max"]
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[:5] for row in rows] == [
        ["random.gguf", "3.33", "MB", "pp4", "1"],
        ["random.gguf", "3.33", "MB", "tg2", "1"],
    ]
    assert float(rows[1][5]) > 0


def test_rates_as_json(random_model: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "bench", random_model, *SHORT, "--json")
    found = json.loads(out)
    assert code == 0
    assert [(one["path"], one["test"], len(one["samples"])) for one in found["runs"]] == [
        (str(random_model), "pp4", 1),
        (str(random_model), "tg2", 1),
    ]
    assert json.loads(err.splitlines()[-1])["done_tokens"] == 12


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--threads", "1,x"], "'1,x' isn't a list of numbers from 1 to 512, such as 1,2"),
        (["--threads", "0"], "'0' isn't a list of numbers from 1 to 512"),
        (["--batch", ""], "'' isn't a list of numbers from 1 to"),
        (["--prompt-tokens", "-1"], "'-1' isn't a list of numbers from 0 to"),
        (["--prompt-tokens", "0", "--generate", "0"], "there is nothing to measure"),
    ],
)
def test_wrong_lists(options: list[str], complaint: str, random_model: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "bench", random_model, *options)
    assert (code, out) == (2, "")
    assert complaint in " ".join(err.replace("│", " ").split())


def test_a_picture_without_matplotlib(random_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    code, out, err = run_captured(monkeypatch, capsys, "bench", random_model, "--plot", tmp_path / "out.png")
    assert (code, out) == (1, "")
    assert err == 'error: --plot needs matplotlib, which isn\'t installed: pip install "tritgguf[bench]"\n'


def test_a_picture_is_a_file(random_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    assert run(monkeypatch, "bench", random_model, *SHORT, "--plot", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    code, _, err = run_captured(monkeypatch, capsys, "bench", random_model, *SHORT, "--plot", out)
    assert code == 1
    assert err == f"error: {out} exists already; add --force to replace it\n"


# --- eval -------------------------------------------------------------------------------------------------------------


def test_a_table_of_perplexities(random_model: Path, text: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "eval", random_model, "--text", text, "--ctx", 16)
    assert (code, err) == (0, "")
    assert cells(out, "file") == ["file", "size", "bits", "linear", "perplexity"]
    row = cells(out, "random.gguf")
    assert row[1:3] == ["3.33", "MB"]
    assert row[4] == "32.00"
    assert out.splitlines()[-1] == "56 tokens scored in 8 chunks of 16."


def test_a_comparison_as_json(random_model: Path, make_model, text: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    other, base = make_model(tmp_path / "other.gguf"), tmp_path / "base.kld"
    options = ("--text", text, "--ctx", 16, "--json")
    compared = ("--against", random_model, "--base-logits", base, *options)
    code, out, err = run_captured(monkeypatch, capsys, "eval", other, *compared)
    found = json.loads(out)
    assert code == 0, err
    assert list(found["files"][0])[:4] == ["path", "file_bytes", "bits_per_weight", "linear_bits_per_weight"]
    assert found["files"][0]["same_top1"] == 1.0
    assert found["base"]["path"] == str(random_model)
    assert json.loads(err.splitlines()[-1])["done_tokens"] == 2 * 8 * 16
    assert len(read_base(base).chunks) == 8
    code, out, _ = run_captured(monkeypatch, capsys, "eval", other, "--base-logits", base, "--json")
    assert code == 0
    assert json.loads(out)["files"] == found["files"]


def test_a_table_of_divergences(random_model: Path, text: Path, monkeypatch, capsys) -> None:
    options = ("--text", text, "--ctx", 16, "--chunks", 1)
    code, out, _ = run_captured(monkeypatch, capsys, "eval", random_model, "--against", random_model, *options)
    assert code == 0
    lines = out.splitlines()
    assert "KLD" in lines[0]
    assert "100.00 ± 0.00" in lines[1]
    assert lines[2].startswith("random.gguf (base)")
    assert lines[3] == "7 tokens scored in 1 chunk of 16."


@pytest.mark.parametrize("command", ["bench", "eval"])
def test_no_model_in_one_line(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    for name in ("nothing.gguf", "text.gguf"):
        code, out, err = run_captured(monkeypatch, capsys, command, tmp_path / name)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["bench", "eval"])
def test_a_file_without_tensors(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    code, out, err = run_captured(monkeypatch, capsys, command, path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "has no tensors" in err


def test_nothing_to_evaluate(monkeypatch, capsys) -> None:
    code, _, err = run_captured(monkeypatch, capsys, "eval")
    assert code == 2
    assert "name a model" in err


def test_the_installed_command(random_model: Path, text: Path) -> None:
    command = [sys.executable, "-m", "tritgguf", "eval", str(random_model), "--text", str(text), "--ctx", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONUTF8": "1"})
    assert "56 tokens scored in 8 chunks of 16." in done.stdout
