"""A new codec is one file, in quant/codecs/ or in another distribution; it says itself where it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import packed_checkpoints, plugins
from tests.command_line import run_captured
from tritgguf.converter import plan
from tritgguf.converter.planning.targets import TARGETS, ternary_types

PACKAGE = "tritgguf.converter.quant.codecs"
CODEC = '''
"""TQ2_0 under another name, and as if its kernels ran elsewhere."""

from tritgguf.converter.quant.codecs.tq2_0 import TQ20


class TwoBits(TQ20):
    name = "two_bits"
    runs_on = ("cuda",)
    refused_by = ("ollama",)


CODEC = TwoBits()
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return packed_checkpoints.build("falcon3", tmp_path / "model")


def converts(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Check that the type's file has the bytes of TQ2_0's."""
    for name in ("two_bits", "tq2_0"):
        out = tmp_path / f"{name}.gguf"
        code, _, errors = run_captured(monkeypatch, capsys, "convert", model, out, "--type", name, "--no-check")
        assert code == 0, errors
    assert (tmp_path / "two_bits.gguf").read_bytes() == (tmp_path / "tq2_0.gguf").read_bytes()


def test_a_file_adds_a_codec(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "two_bits.py").write_text(CODEC)
    with plugins.file_in(PACKAGE, tmp_path / "plugin" / "two_bits.py"):
        converts(model, tmp_path, monkeypatch, capsys)
        assert {target for target in TARGETS if "two_bits" in ternary_types(target)} == {"cuda"}
        linear = {tensor.codec.name for tensor in plan(model, target="cuda").tensors if tensor.spec.role == "linear"}
        assert linear == {"two_bits"}
        code, _, errors = run_captured(
            monkeypatch, capsys, "convert", model, "--dry-run", "--type", "two_bits", "--for", "ollama"
        )
        assert (code, errors.count("\n")) == (1, 1)
        assert "two_bits contradicts --for ollama" in errors
    assert ternary_types("cuda") == ("q2_0", "q2_k", "q4_0")


def test_an_entry_point_adds_a_codec(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "site").mkdir()
    entry_points = {"tritgguf.codecs": {"two_bits": "someones_codec"}}
    plugins.write_distribution(tmp_path / "site", entry_points, {"someones_codec": CODEC})
    with plugins.installed(tmp_path / "site"):
        converts(model, tmp_path, monkeypatch, capsys)


def test_the_help_names_an_entry_point_without_loading_it(tmp_path: Path) -> None:
    entry_points = {"tritgguf.codecs": {"two_bits": "someones_codec"}}
    plugins.write_distribution(tmp_path, entry_points, {"someones_codec": "raise SystemExit('loaded')"})
    command = [sys.executable, "-m", "tritgguf", "convert", "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "300", "PYTHONUTF8": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert "tq2_0, two_bits" in shown.stdout
