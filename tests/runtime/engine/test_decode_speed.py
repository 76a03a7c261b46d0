"""How fast types are here: the measured products are the real ones, and what is found is kept."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tritgguf.converter import EngineError
from tritgguf.converter.planning.targets import ternary_types
from tritgguf.converter.quant.codec import codecs
from tritgguf.runtime.engine import backend, decode_speed, relu2
from tritgguf.runtime.engine.decode_speed_process import N_INPUTS, graph_of
from tritgguf.runtime.engine.kernels.install import fast_types
from tritgguf.runtime.engine.kernels.routes import CPU
from tritgguf.runtime.engine.kernels.self_test import OnDevice, Products, Shape, is_close


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process keeps what it finds."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path)
    return tmp_path / "decode-speed"


def test_every_type_to_choose_from_is_measured_once(folder: Path, monkeypatch) -> None:
    found = decode_speed.seconds_per_weight()
    assert tuple(found) == ternary_types("cpu", fast_types())
    assert all(0 < seconds < 1e-6 for seconds in found.values())  # a weight: a microsecond would be absurd
    (kept,) = folder.iterdir()
    monkeypatch.setattr(subprocess, "run", None)  # nothing is started
    assert decode_speed.seconds_per_weight() == found
    kept.write_text(json.dumps({"tq2_0": 1e-9}))
    assert decode_speed.seconds_per_weight() == {"tq2_0": 1e-9}
    decode_speed.forget()
    assert not kept.exists()


@pytest.mark.parametrize("kept", ["", "[]", '{"tq2_0": "fast"}', '{"tq2_0": 0}', '{"tq2_0": NaN}', '{"tq2_0": [1]}'])
def test_a_damaged_file_counts_as_none(kept: str, folder: Path, monkeypatch) -> None:
    path = decode_speed._file()
    path.parent.mkdir()
    path.write_text(kept)
    monkeypatch.setattr(decode_speed, "COMMAND", (sys.executable, "-c", "print('{\"tq1_0\": 2e-11}')"))
    assert decode_speed.seconds_per_weight() == {"tq1_0": 2e-11}
    assert json.loads(path.read_text()) == {"tq1_0": 2e-11}


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import os; os.abort()", "exit code -6"), ("raise SystemExit('llama.cpp is gone')", "llama.cpp is gone")],
)
def test_where_it_can_t_be_measured_nothing_is_known_and_nothing_kept(code, reason, folder, monkeypatch) -> None:
    monkeypatch.setattr(decode_speed, "COMMAND", (sys.executable, "-c", code))
    with pytest.raises(EngineError, match=rf"^the types' speed couldn't be measured \({reason}\)$"):
        decode_speed.seconds_per_weight()
    said: list[str] = []
    assert decode_speed.seconds_if_known(said.append) == {}
    assert said == [f"the types' speed couldn't be measured ({reason}): of exact types, the smallest one is chosen"]
    assert not folder.exists()


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0", "q4_0"])
def test_what_is_timed_is_a_product_of_the_type(name: str) -> None:
    backend.cpu_kernels()
    ggml, codec = backend.ggml(), codecs()[name]
    case = Products(ggml).random_case(int(codec.ggml_type), Shape(N_INPUTS, 64, 1, 1))
    expected = codec.dequantize(case.weights).astype(np.float64) @ case.activations[0]
    with graph_of(ggml, name, 256) as (graph, product):
        OnDevice(ggml, CPU)(graph, 2)
        address = relu2.Tensor.from_address(product).data
        found = np.frombuffer((ctypes.c_float * 256).from_address(address), np.float32).reshape(-1, 64)
        assert (found == found[0]).all()  # the rows repeat
        assert is_close(found[:1], np.asarray(expected[None], np.float32))
