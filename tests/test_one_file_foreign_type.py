"""A new type of another program is one file in gguf_io/foreign/."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import foreign_gguf, gguf_weights, plugins
from tests.command_line import run_captured
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.reader import read_gguf

PACKAGE = "tritgguf.converter.gguf_io.foreign"
NAME = "blk.0.attn_q.weight"
FOREIGN = '''
"""A byte per trit, and a scale of 2 for all."""

import numpy as np

from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout


class Bytes(ForeignType):
    name = "BYTES"
    numbers = (977,)
    origin = "someone's program"
    loaded_by = "only someone's program"
    layout = Layout(block=1, block_bytes=1)

    def codes(self, stored, n_columns):
        return stored.view(np.int8)

    def scales(self, stored, tail):
        return np.full((len(stored), 1), 2, np.float32)


FOREIGN = Bytes()
'''


def test_a_file_adds_a_type(tmp_path: Path, monkeypatch, capsys) -> None:
    codes = np.random.default_rng(3).integers(-1, 2, (16, 256)).astype(np.int8)
    base = foreign_gguf.base_file(tmp_path / "base.gguf")
    source = foreign_gguf.add_tensors(base, tmp_path / "in.gguf", {NAME: (codes.shape, 977, codes.tobytes())})
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "bytes.py").write_text(FOREIGN)
    with plugins.file_in(PACKAGE, tmp_path / "plugin" / "bytes.py"):
        out = tmp_path / "out.gguf"
        code, _, errors = run_captured(monkeypatch, capsys, "convert", source, out, "--no-check")
        assert code == 0, errors
        (found,) = (tensor for tensor in gguf.GGUFReader(out).tensors if tensor.name == NAME)
        np.testing.assert_array_equal(gguf_weights.dequantized(found), 2 * codes)
    with pytest.raises(UnsupportedError, match="type 977, unknown here"):
        read_gguf(source)
