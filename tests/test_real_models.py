"""Real checkpoints end to end: fetched, converted, loaded, asked."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

import tritgguf.runtime as runtime
from tests.real_models import real_model
from tritgguf.converter import TensorError, convert
from tritgguf.converter.checkpoint.folder import open_checkpoint

pytestmark = pytest.mark.real_model

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
REVERSE = [
    {"role": "user", "content": "Write a Python expression that reverses the string s by slicing. Only the code."}
]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return real_model("smollm2-135m")


@pytest.fixture(scope="module")
def qwen() -> Path:
    return real_model("qwen2.5-coder-1.5b")


def answer(file: Path, messages: list[dict[str, str]], max_tokens: int) -> str:
    with runtime.open(file, n_ctx=512) as session:
        return "".join(session.chat(messages, temperature=0.0, max_tokens=max_tokens))


def stored(file: Path, name: str) -> np.ndarray:
    (tensor,) = [tensor for tensor in GGUFReader(file).tensors if tensor.name == name]
    return dequantize(tensor.data, tensor.tensor_type).reshape([int(size) for size in reversed(tensor.shape)])


def source(folder: Path, name: str) -> np.ndarray:
    tensors = open_checkpoint(folder, linear=()).tensors
    assert tensors is not None
    return tensors[name].read(slice(None))


def test_smollm2_rows_of_576_stop_the_conversion(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=r"q_proj.weight: rows of 576 values .* 256.*--fallback f16"):
        convert(smollm2, tmp_path / "out.gguf", type="tq2_0")
    assert list(tmp_path.iterdir()) == []


def test_smollm2_converts_with_the_fallback(smollm2: Path, tmp_path: Path) -> None:
    result = convert(smollm2, tmp_path / "out.gguf", type="tq2_0", fallback="f16")
    assert result.strings_checked >= 50
    types = {t.spec.shape[-1]: t.codec.name for t in result.plan.tensors if t.spec.role == "linear"}
    assert types == {576: "f16", 1536: "tq2_0"}
    assert any("weren't trained ternary" in note for note in result.plan.notes)
    with runtime.open(result.out, n_ctx=64) as session:
        assert np.isfinite(session.logits([1, 2, 3, 4])).all()


def test_smollm2_answers_from_its_f16_conversion(smollm2: Path, tmp_path: Path) -> None:
    result = convert(smollm2, tmp_path / "out.gguf", type="f16")
    assert "Paris" in answer(result.out, CAPITAL, 24)


def test_qwen_has_four_shards_and_answers_from_its_f16_conversion(qwen: Path, tmp_path: Path) -> None:
    weight_map = json.loads((qwen / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) == 4
    result = convert(qwen, tmp_path / "out.gguf", type="f16")
    assert result.strings_checked >= 50
    assert "[::-1]" in answer(result.out, REVERSE, 32)
    assert "Paris" in answer(result.out, CAPITAL, 24)
    name = "model.layers.13.self_attn.k_proj.weight"
    np.testing.assert_array_equal(stored(result.out, "blk.13.attn_k.weight"), source(qwen, name))


@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0"])
def test_qwen_converts_to_ternary_and_loads(type_name: str, qwen: Path, tmp_path: Path) -> None:
    weights = source(qwen, "model.layers.27.mlp.down_proj.weight")
    errors = {}
    for method in ("mse", "absmean"):
        result = convert(qwen, tmp_path / f"{method}.gguf", type=type_name, method=method)
        assert result.out.stat().st_size == result.plan.file_bytes
        difference = stored(result.out, "blk.27.ffn_down.weight") - weights
        errors[method] = float((difference**2).sum() / (weights**2).sum())
        with runtime.open(result.out, n_ctx=64) as session:
            assert np.isfinite(session.logits([1, 2, 3, 4])).all()
    # On Gaussian weights the best ternary fit loses 0.190 and absmean 0.263; real ones have heavier tails.
    assert 0.18 < errors["mse"] < 0.24
    assert 0.25 < errors["absmean"] < 0.35
