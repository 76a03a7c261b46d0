"""A new method is one file in quant/methods/."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests import checkpoints, plugins
from tests.command_line import run_captured

PACKAGE = "tritgguf.converter.quant.methods"
METHOD = '''
"""Half of the largest magnitude decides, and three quarters of it is the scale."""

import numpy as np

from tritgguf.converter.core.floats import widened
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.quant.method import Method


def quantize(rows, group_size):
    values = widened(rows)
    groups = values.reshape(len(values), -1, group_size)
    largest = np.abs(groups).max(axis=2)
    codes = np.sign(groups) * (np.abs(groups) > largest[..., None] / 2)
    scales = (largest * np.float32(0.75)).astype(np.float16).astype(np.float32)
    return CodedRows(codes.astype(np.int8).reshape(values.shape), scales, group_size)


METHOD = Method("half_of_largest", quantize)
'''


def test_a_file_adds_a_method(tmp_path: Path, monkeypatch, capsys) -> None:
    model, out = checkpoints.build("llama-gqa", tmp_path / "model"), tmp_path / "out.gguf"
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "half_of_largest.py").write_text(METHOD)
    options = ("--type", "tq2_0", "--method", "half_of_largest", "--no-check")
    with plugins.file_in(PACKAGE, tmp_path / "plugin" / "half_of_largest.py"):
        code, _, errors = run_captured(monkeypatch, capsys, "convert", model, out, *options)
        assert code == 0, errors
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    weights = checkpoints.weights("llama-gqa")["model.layers.1.mlp.down_proj.weight"]
    groups = weights.reshape(-1, 256)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    kept = np.abs(groups) > largest / 2
    expected = np.sign(groups) * kept * (largest * np.float32(0.75)).astype(np.float16).astype(np.float32)
    stored = tensors["blk.1.ffn_down.weight"]
    found = gguf.quants.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_array_equal(found, expected.reshape(weights.shape))
    code, _, errors = run_captured(monkeypatch, capsys, "convert", model, out, *options, "--force")
    known = "absmean, four_levels, mse, or gptq"
    assert (code, errors) == (1, f"error: unknown method 'half_of_largest'; expected one of {known}\n")
