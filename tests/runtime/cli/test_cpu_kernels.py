"""What the command line says of the CPU kernels, and what `convert --for cpu` chooses where they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import packed_checkpoints
from tests.command_line import run_captured
from tritgguf.runtime.engine import backend
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels.install import fast_types


@pytest.fixture(scope="module")
def groups_of_64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_checkpoints.build("14b-seed", tmp_path_factory.mktemp("models") / "14b-seed")


@pytest.mark.parametrize("mode", ["auto", "stock"])
def test_convert_for_this_cpu_takes_what_is_fast_here(mode, groups_of_64, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", mode)
    monkeypatch.setattr("tritgguf.converter.planning.targets.is_x86", lambda: True)
    types, sizes = {}, {}
    for target in ("cpu", "any"):
        code, out, _ = run_captured(
            monkeypatch, capsys, "convert", groups_of_64, "--for", target, "--dry-run", "--json"
        )
        assert code == 0
        plan = json.loads(out)
        sizes[target] = plan["file_bytes"]
        (types[target],) = {tensor["type"] for tensor in plan["tensors"] if "attn_q.weight" in tensor["name"]}
    assert types == {"cpu": "q2_0" if "q2_0" in fast_types() else "q4_0", "any": "q4_0"}
    code, out, _ = run_captured(monkeypatch, capsys, "inspect", groups_of_64, "--json")
    assert json.loads(out)["sizes"]["auto"]["file_bytes"] == sizes["cpu"]
    assert ("q2_0" in fast_types()) == (mode == "auto" and backend.cpu_kernels().route != "stock")


def test_the_version_tells_which_kernels_run(monkeypatch, capsys) -> None:
    code, out, _ = run_captured(monkeypatch, capsys, "--version")
    assert (code, out.splitlines()[1]) == (0, f"CPU kernels: {backend.cpu_kernels()}")
    if compiled.PATH.exists():
        assert out.splitlines()[1].endswith(", by hook (the self-test passed)")


@pytest.mark.parametrize("command", [["convert", "model", "out.gguf"], ["convert", "model", "--dry-run"]])
def test_an_unknown_mode_is_one_line(command, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", "fast")
    code, out, error = run_captured(monkeypatch, capsys, *command)
    expected = "error: TRITGGUF_CPU_KERNELS is 'fast'; expected one of auto, hook, accel, stock\n"
    assert (code, out, error) == (1, "", expected)
