"""A GPU, where llama.cpp was built for one and finds it. Oracles: the CPU's logits, and llama.cpp's log.

Mesa's llvmpipe, a Vulkan driver that computes on the CPU, serves where there is no real one: `GGML_VK_VISIBLE_DEVICES=0
make test BACKEND=vulkan PYTEST_ARGS=tests/runtime/engine`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tritgguf.converter
import tritgguf.runtime
from tests.paths import ROOT
from tests.runtime.engine.test_rpc import server
from tritgguf.runtime.engine import backend
from tritgguf.runtime.engine.devices import gpus

pytestmark = pytest.mark.skipif(not backend.supports_gpu(), reason="this llama.cpp finds no GPU: make BACKEND=vulkan")

DEMO = ROOT / "vendor" / "demo-model"
# More tokens than llama.cpp leaves to the CPU, where there is a GPU.
LONG = " ".join(["Who are you, and what do you like to do all day long?"] * 6)
COMPUTES = re.compile(r"sched_reserve: +(\S+) compute buffer size")
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
        assert not np.array_equal(logits, expected)  # a GPU adds in another order


def test_a_server_offers_its_gpu(folder: Path, monkeypatch) -> None:
    path, (gpu, *_) = demo(folder, "tq2_0"), gpus(backend.ggml())
    expected, _ = evaluated(path, monkeypatch)
    with server(serves=gpu.name) as (address, _):
        logits, log = evaluated(path, monkeypatch, rpc=(address,), main_gpu=0, tensor_split=(1, 0))
    assert any(name.startswith("RPC") for name in COMPUTES.findall(log))
    assert divergence(expected, logits) < 0.002
