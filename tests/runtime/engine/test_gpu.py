"""A GPU, where llama.cpp was built for one and finds it. Oracles: the CPU's logits, and llama.cpp's log.

Mesa's llvmpipe, a Vulkan driver that computes on the CPU, serves where there is no real one: `GGML_VK_VISIBLE_DEVICES=0
make test BACKEND=vulkan PYTEST_ARGS=tests/runtime/engine`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import tritgguf.converter
import tritgguf.runtime
from tests.paths import ROOT
from tests.runtime.engine.test_rpc import server
from tritgguf.runtime.engine import backend, placement
from tritgguf.runtime.engine.devices import gpus
from tritgguf.runtime.engine.gguf_header import read_header
from tritgguf.runtime.engine.gpu_memory import LEFT_FREE_BYTES, layer_bytes
from tritgguf.runtime.engine.placement import ANYWHERE

pytestmark = pytest.mark.skipif(not backend.supports_gpu(), reason="this llama.cpp finds no GPU: make BACKEND=vulkan")

DEMO = ROOT / "vendor" / "demo-model"
# More tokens than llama.cpp leaves to the CPU, where there is a GPU.
LONG = " ".join(["Who are you, and what do you like to do all day long?"] * 6)
COMPUTES = re.compile(r"sched_reserve: +(\S+) compute buffer size")
HELD = re.compile(r"(\w+) (?:model|KV) buffer size = +([\d.]+) MiB")
OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


def demo(folder: Path, type_name: str) -> Path:
    path = folder / f"{type_name}.gguf"
    if not path.exists():
        tritgguf.converter.convert(DEMO, path, type=type_name, check=False)
    return path


def evaluated(path: Path, monkeypatch: pytest.MonkeyPatch, **where: object) -> tuple[np.ndarray, str]:
    """Return the logits behind a long prompt and a token more, each in float64, and what llama.cpp logged."""
    lines: list[str] = []
    monkeypatch.setattr(backend._log, "write", lambda _level, text: lines.append(text.decode()))
    with tritgguf.runtime.open(path, n_threads=1, n_ctx=256, **where) as session:
        ids = session.tokenize(LONG)
        session.evaluate(ids)
        behind_prompt = session.context.logits(0).astype(np.float64)
        session.evaluate([*ids, ids[0]])
        return np.stack([behind_prompt, session.context.logits(0).astype(np.float64)]), "".join(lines)


def divergence(expected: np.ndarray, logits: np.ndarray) -> float:
    """Return the largest KL divergence of a row's prediction from the expected one."""
    theirs, ours = (rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True) for rows in (expected, logits))
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).max())


@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0", "q2_0", "q2_k", "q8_0", "f16"])
def test_all_layers_some_or_none(type_name: str, folder: Path, monkeypatch) -> None:
    path = demo(folder, type_name)
    expected, on_cpu = evaluated(path, monkeypatch, n_gpu_layers=0)
    assert set(COMPUTES.findall(on_cpu)) == {"CPU"}  # so that none of it, long prompts included, is a GPU's
    for asked in (None, 2):
        logits, log = evaluated(path, monkeypatch, n_gpu_layers=asked)
        (layers,) = OFFLOADED.findall(log)
        assert layers[0] == (layers[1] if asked is None else str(asked))
        assert set(COMPUTES.findall(log)) != {"CPU"}
        assert divergence(expected, logits) < 0.002
        assert in_words(path, asked).startswith(f"{'the last 2 of' if asked else 'all'} {layers[1]} on ")
        assert not np.array_equal(logits, expected)  # a GPU adds in another order


def in_words(path: Path, n_gpu_layers: int | None) -> str:
    with tritgguf.runtime.open(path, n_ctx=64, n_gpu_layers=n_gpu_layers) as session:
        return session.model.layers_in_words


def test_a_server_offers_its_gpu(folder: Path, monkeypatch) -> None:
    path, (gpu, *_) = demo(folder, "tq2_0"), gpus(backend.ggml())
    expected, _ = evaluated(path, monkeypatch)
    with server(serves=gpu.name) as (address, _):
        logits, log = evaluated(path, monkeypatch, rpc=(address,), main_gpu=0, tensor_split=(1, 0))
    assert any(name.startswith("RPC") for name in COMPUTES.findall(log))
    assert divergence(expected, logits) < 0.002


def on_gpus(log: str) -> float:
    """Return the MiB of weights and caches on GPUs."""
    return sum(
        float(size) for name, size in HELD.findall(log) if not name.startswith("CPU") and not name.endswith("_Host")
    )


@pytest.mark.parametrize("type_name", ["tq2_0", "f16"])
def test_what_layers_need_is_what_llama_cpp_takes(type_name: str, folder: Path, monkeypatch) -> None:
    path = demo(folder, type_name)
    layers = layer_bytes(path, read_header(path), 256)
    for count in (1, 3, len(layers)):
        _, log = evaluated(path, monkeypatch, n_gpu_layers=count)
        assert on_gpus(log) == pytest.approx(sum(layers[-count:]) / 2**20, abs=0.02)


def test_as_many_layers_as_fit(folder: Path, monkeypatch) -> None:
    path = demo(folder, "tq2_0")
    layers, found = layer_bytes(path, read_header(path), 256), gpus(backend.ggml())
    expected, _ = evaluated(path, monkeypatch, n_gpu_layers=0)
    for count in (0, 1, 4):
        room = LEFT_FREE_BYTES + sum(layers[len(layers) - count :]) + layers[-count - 1] - 1
        few = [replace(found[0], free_bytes=room), *(replace(gpu, free_bytes=0) for gpu in found[1:])]
        monkeypatch.setattr(placement, "gpus", lambda _ggml, few=few: few)
        logits, log = evaluated(path, monkeypatch)
        assert OFFLOADED.findall(log) == [(str(count), str(len(layers)))]
        assert divergence(expected, logits) < 0.002
        (line,) = placement.what_fits(backend.ggml(), ANYWHERE, path, 256)
        where = f"so the last {count} of {len(layers)} layers go there" if count else "so the CPU computes all of it"
        assert line.startswith(f"{path}: {found[0].name} has 1.0")
        assert where in line
    monkeypatch.undo()
    assert placement.what_fits(backend.ggml(), ANYWHERE, path, 256) == []


def test_a_matrix_that_is_too_large_is_named(tmp_path: Path) -> None:
    gpu = gpus(backend.ggml())[0]
    if "llvmpipe" not in gpu.description:
        pytest.skip("only llvmpipe's limit, 128 MiB, is known")
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, n_rows in (("output.weight", 300_000), ("blk.0.ffn_up.weight", 16)):
        writer.add_tensor(name, np.zeros((n_rows, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    line = f"{path}: {gpu.name} can't multiply output.weight, F16 of 300000 × 256, so the CPU does"
    assert placement.without_kernel(backend.ggml(), path, [gpu]) == [line]
