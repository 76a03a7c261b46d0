"""`tritgguf inspect` on the command line: a compact table, every tensor, JSON, refusals and damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import checkpoints, packed_checkpoints
from tests.command_line import run_captured
from tritgguf.converter import convert


def cells(text: str, first: str) -> list[str]:
    """The words of the one line that begins with the word `first`."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_alike_tensors_share_a_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", "stock")
    code, out, err = run_captured(monkeypatch, capsys, "inspect", checkpoints.build("llama-tied", tmp_path / "model"))
    assert (code, err) == (0, "")
    assert out.startswith("model: plain floats, LlamaForCausalLM → llama, 1.9 M values in 3.71 MB (29 BF16)\n")
    assert " ".join(cells(out, "blk.*.ffn_up")) == (
        "blk.*.ffn_up x3 512 x 256 BF16 16.00 row 32% tq1_0 tq2_0 q2_0 q2_k q4_0"
    )
    assert cells(out, "token_embd")[-3:] == ["0%", "bf16", "f32"]
    assert " ".join(cells(out, "q2_0")) == "q2_0 0.68 MB yes cpu, cuda, metal, vulkan (slow on x86)"
    assert " ".join(cells(out, "auto")) == "auto 0.55 MB yes cpu"
    assert cells(out, "q8_0")[:4] == ["q8_0", "2.06", "MB", "no"]
    assert max(len(line) for line in out.splitlines()) <= 100


def test_types_that_are_fast_here_are_slow_elsewhere_only(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tritgguf.runtime.engine.kernels.install.fast_types", lambda: frozenset({"q2_0"}))
    _, out, _ = run_captured(monkeypatch, capsys, "inspect", checkpoints.build("llama-tied", tmp_path / "model"))
    assert " ".join(cells(out, "q2_0")).endswith("vulkan (slow on x86 in other programs)")
    assert max(len(line) for line in out.splitlines()) <= 100


def test_every_tensor(tmp_path: Path, monkeypatch, capsys) -> None:
    model = checkpoints.build("llama1", tmp_path / "model")
    _, out, _ = run_captured(monkeypatch, capsys, "inspect", model, "--tensors")
    assert cells(out, "blk.1.attn_q")[:4] == ["blk.1.attn_q", "256", "x", "256"]
    assert cells(out, "blk.0.attn_norm") == ["blk.0.attn_norm", "256", "F16", "16.00"]
    assert "*" not in out


def test_scales_that_fp16_rounds(tmp_path: Path, monkeypatch, capsys) -> None:
    _, out, _ = run_captured(monkeypatch, capsys, "inspect", packed_checkpoints.build("14b-seed", tmp_path / "model"))
    assert cells(out, "blk.*.ffn_up")[5:] == ["base-3", "2.50", "64", "32%", "≈q2_0", "≈q4_0"]
    assert "≈ codes exact, scales rounded to fp16, by up to 5e-04" in out
    assert cells(out, "q2_0")[:4] == ["q2_0", "0.74", "MB", "≈"]
    assert cells(out, "tq2_0")[:4] == ["tq2_0", "0.72", "MB", "no"]
    assert "note: the tokenizer composes accents" in out


def test_a_gguf_file_as_json(tmp_path: Path, monkeypatch, capsys) -> None:
    file = convert(checkpoints.build("llama1", tmp_path / "model"), tmp_path / "out.gguf", "tq1_0").out
    code, out, err = run_captured(monkeypatch, capsys, "inspect", file, "--json")
    said = json.loads(out)
    assert code == 0
    assert (said["kind"], said["path"], said["architecture"]) == ("gguf", "out.gguf", "llama")
    assert said["dtypes"] == {"TQ1_0": 14, "F32": 5, "F16": 2}
    assert said["sizes"]["tq1_0"]["file_bytes"] == file.stat().st_size
    assert json.loads(err.splitlines()[-1])["stage"] == "reading"
    assert str(tmp_path) not in out


def test_a_refused_model(tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, _ = run_captured(monkeypatch, capsys, "inspect", checkpoints.build("qwen3-biases", tmp_path / "model"))
    assert code == 0
    assert "ternary per" in out
    assert cells(out, "model.layers.*.mlp.up_proj")[1] == "x2"
    assert "can't be converted: config.json: attention_bias is true" in out
    assert "--type" not in out


@pytest.mark.parametrize("kind", ["nothing", "folder", "cut", "text"])
def test_damage_in_one_line(kind: str, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "cut":
        file = convert(checkpoints.build("llama1", tmp_path / "model"), tmp_path / "out.gguf", "tq1_0").out
        path.write_bytes(file.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("hello")
    code, out, err = run_captured(monkeypatch, capsys, "inspect", path)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_names_cannot_format_the_table(tmp_path: Path, monkeypatch, capsys) -> None:
    """A folder's name is text, not markup; what isn't a name of a class isn't shown."""
    model = checkpoints.build("llama1", tmp_path / "[bold]x")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["[red]Y[/red]"]}))
    _, out, _ = run_captured(monkeypatch, capsys, "inspect", model)
    assert out.startswith("[bold]x: plain floats, unknown architecture, ")


def test_the_installed_command(tmp_path: Path) -> None:
    model = checkpoints.build("llama1", tmp_path / "model")
    command = [sys.executable, "-m", "tritgguf", "inspect", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONUTF8": "1"})
    assert "blk.*.ffn_down" in done.stdout
    assert done.stderr == ""


def test_a_snapshot_of_the_cache_has_the_repository_s_name(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "models--org--Tiny-Model" / "snapshots" / ("0123456789abcdef" * 3)[:40]
    folder.parent.mkdir(parents=True)
    _, out, _ = run_captured(monkeypatch, capsys, "inspect", checkpoints.build("llama-gqa", folder))
    assert out.startswith("Tiny-Model: plain floats, LlamaForCausalLM")
