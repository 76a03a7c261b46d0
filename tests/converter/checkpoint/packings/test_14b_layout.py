"""Two layers of the 14B seed at their full shape, base-3 packed: exact in Q2_0, refused in TQ2_0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import checkpoints, gguf_weights, tiny_tokenizers
from tests.checkpoint_recipes import Recipe, config
from tests.oracles import libggml
from tritgguf.converter import convert, plan
from tritgguf.converter.errors import TensorError

pytestmark = pytest.mark.real_model  # of a real one's size: 0.4 GB of disk

GROUP, ROWS_AT_ONCE = 64, 512
SEED = Recipe(
    "Qwen2ForCausalLM", "float", hidden=5120, ffn=13824, heads=40, kv_heads=8, vocab=1024, tokenizer="qwen2",
    rope_theta=1000000.0, max_positions=32768, rms_norm_eps=1e-6,
)  # fmt: skip
Entry = tuple[str, tuple[int, ...], NDArray[np.generic]]


def stored(key: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Entry]]:
    """Yield what the file holds for one tensor of the model; any byte up to 80 is four trits."""
    if len(shape) == 1:
        yield key, ("F32", shape, checkpoints._tensor("14b", SEED, key, shape))
        return
    n_rows, n_columns = shape
    words = checkpoints._raw_words(f"14b/{key}", n_rows * n_columns // 32)
    yield key, ("U8", (n_rows, n_columns // 4), words.view(np.uint8).reshape(n_rows, -1) % np.uint8(81))
    size = checkpoints._raw_words(f"14b/{key}/scales", n_rows * n_columns // GROUP).reshape(n_rows, -1) % np.uint64(
        2**23
    )
    scales = ((1 + size.astype(np.float64) / 2**23) / 64).astype(np.float32)
    if key.startswith("model.layers.0."):
        scales = scales.astype(np.float16).astype(np.float32)  # so that the first layer is exact to the bit
    yield f"{key}.scales", ("F32", scales.shape, scales)


def expected(key: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Yield the weights, some rows at a time."""
    (_, (_, _, packed)), (_, (_, _, scales)) = stored(key, shape)
    for start in range(0, shape[0], ROWS_AT_ONCE):
        digits = packed[start : start + ROWS_AT_ONCE].astype(np.int16)
        trits = np.stack([digits // 3**place % 3 - 1 for place in range(4)], axis=-1).reshape(len(digits), -1)
        yield trits * np.repeat(scales[start : start + ROWS_AT_ONCE], GROUP, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("14b")
    (path / "config.json").write_text(json.dumps(config(SEED)))
    tiny_tokenizers.write(SEED.tokenizer, path)
    header, offset = {}, 0
    shapes = checkpoints._shapes(SEED)
    with (path / "body").open("wb") as body:
        for key, shape in shapes.items():
            for name, (dtype, stored_shape, values) in stored(key, shape):
                header[name] = {"dtype": dtype, "shape": stored_shape, "data_offsets": [offset, offset + values.nbytes]}
                offset += values.nbytes
                body.write(values.data)
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file, (path / "body").open("rb") as body:
        file.write(len(text).to_bytes(8, "little") + text)
        while chunk := body.read(1 << 24):
            file.write(chunk)
    (path / "body").unlink()
    return path


def test_q2_0_holds_it_exactly(folder: Path, tmp_path: Path) -> None:
    planned = convert(folder, tmp_path / "out.gguf", target="cuda").plan
    linear = [tensor for tensor in planned.tensors if tensor.spec.role == "linear"]
    assert len(linear) == 14
    assert {tensor.codec.name for tensor in linear} == {"q2_0"}
    assert {(tensor.exact, ".layers.0." in tensor.spec.source) for tensor in linear} == {(True, True), (False, False)}
    n_linear = 2 * (2 * 5120 * 5120 + 2 * 1024 * 5120 + 3 * 5120 * 13824)
    assert sum(tensor.n_bytes for tensor in linear) == n_linear // 64 * 18
    found = {gguf_weights.hf_name(t.name, ("", "")): t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for key, shape in checkpoints._shapes(SEED).items():
        if not checkpoints.is_linear(key):
            continue
        allowed = 0 if ".layers.0." in key else 2.0**-11
        for number, wanted in enumerate(expected(key, shape)):
            rows = found[key].data[number * ROWS_AT_ONCE : (number + 1) * ROWS_AT_ONCE]
            values = libggml.dequantize(np.array(rows), found[key].tensor_type)
            assert gguf_weights.relative_error(values, wanted) <= allowed, (key, number)


def test_tq2_0_is_refused_with_the_error_it_would_cause(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TensorError, match=r"per 64 columns, which tq2_0 can't hold: .* by 1\d% \(relative error\)"
    ) as stop:
        plan(folder, type="tq2_0")
    assert "--type q2_0" in str(stop.value)
