"""A new scheme is one file in export/schemes/: its rule, and the packing that it is written in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

from tests import checkpoints, plugins
from tests.command_line import run_captured
from tritgguf.converter.checkpoint.folder import open_checkpoint

PACKAGE = "tritgguf.converter.export.schemes"
KEY = "model.layers.1.mlp.down_proj.weight"
SCHEME = '''
"""sign-g32: the signs of 32 columns, times their mean magnitude."""

import numpy as np

from tritgguf.converter.checkpoint.packer import Coder
from tritgguf.converter.checkpoint.packings.base3 import LAYOUT, METHOD, PACKING
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.export.scheme import Scheme

GROUP = 32


def code(rows):
    groups = rows.reshape(len(rows), -1, GROUP)
    scales = np.abs(groups).mean(axis=2, dtype=np.float64).astype(np.float32)
    return CodedRows(np.sign(rows).astype(np.int8), scales, GROUP)


SCHEME = Scheme(
    "sign-g32",
    group=GROUP,
    coder=lambda source, grid, threads: Coder(code),
    holds=lambda grid, source: False,
    packing=PACKING,
    config={"quant_method": METHOD, "group_size": GROUP, "packing": LAYOUT},
    reading="Base-3 packing.",
)
'''


def test_a_file_adds_a_scheme(tmp_path: Path, monkeypatch, capsys) -> None:
    model, out = checkpoints.build("llama-gqa", tmp_path / "model"), tmp_path / "out"
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "sign_g32.py").write_text(SCHEME)
    with plugins.file_in(PACKAGE, tmp_path / "plugin" / "sign_g32.py"):
        code, _, errors = run_captured(monkeypatch, capsys, "quantize", model, out, "--scheme", "sign-g32")
        assert code == 0, errors
    weights = checkpoints.weights("llama-gqa")[KEY]
    means = np.abs(weights.reshape(len(weights), -1, 32).astype(np.float64)).mean(axis=2).astype(np.float32)
    expected = np.sign(weights) * np.repeat(means, 32, axis=1)
    with safe_open(out / "model.safetensors", "numpy") as file:
        packed, scales = file.get_tensor(KEY), file.get_tensor(f"{KEY}.scales")
    trits = (packed[:, :, None] // np.array([1, 3, 9, 27], np.uint8) % 3).astype(np.int8) - 1
    np.testing.assert_array_equal(trits.reshape(weights.shape), np.sign(weights))
    np.testing.assert_array_equal(scales, means)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["group_size"] == 32
    tensors = open_checkpoint(out, linear=()).tensors  # reading it needs no scheme
    assert tensors is not None
    np.testing.assert_array_equal(tensors[KEY].read(slice(None)), expected)
