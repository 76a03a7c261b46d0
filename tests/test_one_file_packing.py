"""A new packing is one file, read and written side by side, in checkpoint/packings/ or in another distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests import checkpoints, packed_checkpoints, plugins
from tests.command_line import run_captured
from tests.packed_checkpoints import Stored
from tritgguf.converter.checkpoint.folder import open_checkpoint

PACKAGE = "tritgguf.converter.checkpoint.packings"
KEY = "model.layers.1.mlp.down_proj.weight"
PACKING = '''
"""Nibbles: two neighbouring columns in one byte as trit + 1, the first in the low nibble, and a scale per tensor."""

from dataclasses import dataclass

import numpy as np

from tritgguf.converter.checkpoint.packer import Packer
from tritgguf.converter.checkpoint.packing import Packing
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.tensors import CodedRows, CodedTensor

UNIT = ".unit"


@dataclass(frozen=True)
class NibbleTensor(CodedTensor):
    unit: np.float32

    def scales(self, rows):
        return np.full((len(range(self.shape[0])[rows]), 1), self.unit)

    def read_codes(self, rows):
        packed = self.stored.data.reshape(self.stored.shape)[rows]
        codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1).astype(np.int8) - np.int8(1)
        return CodedRows(codes, np.full((len(codes), 1), self.unit), self.group)


def recognizes(config, stored):
    return any(name.endswith(UNIT) for name in stored)


def read(config, stored, *_):
    tensors = {}
    for name, tensor in stored.items():
        if tensor.dtype == "U8":
            unit = stored[name + UNIT].read(slice(None)).reshape(())[()]
            shape = (tensor.shape[0], 2 * tensor.shape[1])
            tensors[name] = NibbleTensor(name, PACKING.name, shape, shape[1], tensor, unit)
        elif not name.endswith(UNIT):
            tensors[name] = tensor
    return tensors


class NibblePacker(Packer):
    def entries(self, name, shape):
        return Entry(name, "U8", (shape[0], shape[1] // 2)), Entry(name + UNIT, "F32", (1,))

    def pack(self, name, shape, chunk, rows, constants):
        digits = (rows.codes + 1).astype(np.uint8)
        pieces = [(name, chunk.start * shape[1] // 2, digits[:, 0::2] | digits[:, 1::2] << 4)]
        if chunk.start == 0:
            pieces.append((name + UNIT, 0, constants[UNIT].view(np.uint8)))
        return pieces


PACKING = Packing("nibbles", recognizes, read, lambda config: NibblePacker())
'''
SCHEME = '''
"""Every weight becomes the tensor's sign times a half."""

import numpy as np

from someones_packing import PACKING, UNIT
from tritgguf.converter.checkpoint.packer import Coder
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.export.scheme import Scheme

HALF = np.array([0.5], "<f4")


def code(rows):
    return CodedRows(np.sign(rows).astype(np.int8), np.full((len(rows), 1), HALF[0]), rows.shape[1])


SCHEME = Scheme(
    "half",
    group=None,
    coder=lambda source, grid, threads: Coder(code, {UNIT: HALF}),
    holds=lambda grid, source: False,
    packing=PACKING,
    config={"quant_method": "nibbles"},
    reading="Nibbles.",
)
'''


def nibbles(values: np.ndarray, name: str) -> Stored:
    """Return what the packing holds of a ternary tensor."""
    unit = np.abs(values).max()
    digits = (np.sign(values) + 1).astype(np.uint8)
    packed = digits[:, 0::2] + 16 * digits[:, 1::2]
    return {name: ("U8", packed.shape, packed.tobytes()), f"{name}.unit": packed_checkpoints.floats(unit[None], "F32")}


def folder_of(folder: Path, packed: bool) -> Path:
    """Write one ternary model, in nibbles or as floats."""
    packed_checkpoints.build("falcon3", folder)
    keys = packed_checkpoints.read_config(folder)
    packed_checkpoints.write_config(folder, {k: v for k, v in keys.items() if k != "quantization_config"})
    tensors: Stored = {}
    for name, values in packed_checkpoints.weights("falcon3").items():
        nibbled = packed and checkpoints.is_linear(name)
        tensors |= nibbles(values, name) if nibbled else {name: packed_checkpoints.floats(values, "F32")}
    packed_checkpoints.write_tensors(folder, tensors)
    return folder


def test_a_file_adds_a_packing(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "nibbles.py").write_text(PACKING)
    files = []
    with plugins.file_in(PACKAGE, tmp_path / "plugin" / "nibbles.py"):
        for packed in (True, False):
            model = folder_of(tmp_path / str(packed) / "model", packed)
            assert open_checkpoint(model, linear=()).packing == ("nibbles" if packed else "plain floats")
            files.append(tmp_path / f"{packed}.gguf")
            arguments = ("convert", model, files[-1], "--type", "tq2_0", "--no-check")
            code, _, errors = run_captured(monkeypatch, capsys, *arguments)
            assert code == 0, errors
    assert files[0].read_bytes() == files[1].read_bytes()


def test_entry_points_add_a_packing_and_a_scheme_written_in_it(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "site").mkdir()
    entry_points = {
        "tritgguf.packings": {"nibbles": "someones_packing"},
        "tritgguf.schemes": {"half": "someones_scheme"},
    }
    modules = {"someones_packing": PACKING, "someones_scheme": SCHEME}
    plugins.write_distribution(tmp_path / "site", entry_points, modules)
    model, out = checkpoints.build("llama-gqa", tmp_path / "model"), tmp_path / "out"
    signs = np.sign(checkpoints.weights("llama-gqa")[KEY])
    with plugins.installed(tmp_path / "site"):
        code, _, errors = run_captured(monkeypatch, capsys, "quantize", model, out, "--scheme", "half")
        assert code == 0, errors
        with safe_open(out / "model.safetensors", "numpy") as file:
            stored = file.get_tensor(KEY)
        np.testing.assert_array_equal(stored, (signs[:, 0::2] + 1 + 16 * (signs[:, 1::2] + 1)).astype(np.uint8))
        read = open_checkpoint(out, linear=())
        assert read.packing == "nibbles"
        assert read.tensors is not None
        np.testing.assert_array_equal(read.tensors[KEY].read(slice(None)), signs * np.float32(0.5))
    with pytest.raises(Exception, match="nibbles"):
        open_checkpoint(out, linear=())
