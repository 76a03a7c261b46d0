"""A new architecture is one new file: phi3's graph for a class with other names of its fused q, k, v, gate and up.

llama.cpp computes with the converted file, and tests/numpy_decoder.py with the separate weights; the logits agree.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

import tritgguf.runtime as rt
from tests import checkpoints, gguf_weights, numpy_decoder, packed_checkpoints
from tests.checkpoint_recipes import RECIPES, config
from tritgguf.converter import convert
from tritgguf.converter.core.registry import offered
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.model.architecture import architecture_for, architectures

ARCH = "tritgguf.converter.model.arch"
RECIPE = "llama-gqa"
FILE = '''
"""A decoder with fused projections."""

from gguf import MODEL_ARCH, MODEL_TENSOR

from tritgguf.converter.gguf_io.metadata import uint32
from tritgguf.converter.model.architecture import Architecture
from tritgguf.converter.model.decoder import attention_norm, embedding, feed_forward_norm, layers, linear, output


def tensors(config):
    return [embedding(config), *layers(config, layer), *output(config)]


def layer(config, number):
    hidden, ffn, queries = config.hidden_size, config.intermediate_size, config.query_size
    fused = queries + 2 * config.key_size
    return [
        attention_norm(config, number),
        *linear(number, "self_attn.qkv", MODEL_TENSOR.ATTN_QKV, (fused, hidden)),
        *linear(number, "self_attn.out", MODEL_TENSOR.ATTN_OUT, (hidden, queries)),
        feed_forward_norm(config, number),
        *linear(number, "mlp.gate_up", MODEL_TENSOR.FFN_UP, (2 * ffn, hidden)),
        *linear(number, "mlp.down", MODEL_TENSOR.FFN_DOWN, (hidden, ffn)),
    ]


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.PHI3,
    classes={"OneFileForCausalLM": {}},
    tensors=tensors,
    extra_keys=lambda config, arch: {f"{arch}.rope.scaling.original_context_length": uint32(config.max_positions)},
)
'''


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put one file where architectures are looked for."""
    folder = tmp_path / "arch"
    folder.mkdir()
    (folder / "one_file.py").write_text(FILE, encoding="utf-8")
    package = importlib.import_module(ARCH)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    offered.cache_clear()
    yield
    offered.cache_clear()
    sys.modules.pop(f"{ARCH}.one_file", None)
    vars(package).pop("one_file", None)


def separate() -> dict[str, np.ndarray]:
    """Return the weights as Llama has them."""
    return checkpoints.weights(RECIPE)


def fused() -> dict[str, np.ndarray]:
    """Return the same weights under the names and in the shapes of the new class."""
    tensors = separate()
    for layer in range(RECIPES[RECIPE].layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        qkv = [tensors.pop(f"{attention}.{part}_proj.weight") for part in "qkv"]
        gate_up = [tensors.pop(f"{mlp}.{part}_proj.weight") for part in ("gate", "up")]
        tensors[f"{attention}.qkv.weight"] = np.concatenate(qkv)
        tensors[f"{mlp}.gate_up.weight"] = np.concatenate(gate_up)
        tensors[f"{attention}.out.weight"] = tensors.pop(f"{attention}.o_proj.weight")
        tensors[f"{mlp}.down.weight"] = tensors.pop(f"{mlp}.down_proj.weight")
    return tensors


def build(folder: Path, **changes: object) -> Path:
    checkpoints.build(RECIPE, folder)
    keys = {**config(RECIPES[RECIPE]), "architectures": ["OneFileForCausalLM"], **changes}
    (folder / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    dtype = RECIPES[RECIPE].dtype
    stored = {name: (dtype, values.shape, checkpoints._encode(values, dtype)) for name, values in fused().items()}
    checkpoints._write_safetensors(folder / "model.safetensors", stored)
    return folder


def test_without_the_file_the_class_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="architecture OneFileForCausalLM isn't known; "):
        convert(build(tmp_path / "model"), tmp_path / "out.gguf", "f16")


@pytest.mark.usefixtures("one_file")
def test_the_file_s_tensors_are_written(tmp_path: Path) -> None:
    model = build(tmp_path / "model")
    file = read_gguf(convert(model, tmp_path / "out.gguf", "tq2_0").out)
    assert file.value("general.architecture") == "phi3"
    names = ["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"]
    expected = [f"blk.{layer}.{name}.weight" for layer in range(2) for name in names]
    assert list(file.tensors) == ["token_embd.weight", *expected, "output_norm.weight", "output.weight"]
    linear = {name for name, tensor in file.tensors.items() if tensor.dtype == "TQ2_0"}
    assert linear == {name for name in expected if "norm" not in name}
    assert inspect(model).refused is None


@pytest.mark.usefixtures("one_file")
def test_llama_cpp_computes_the_same_model(tmp_path: Path) -> None:
    out = convert(build(tmp_path / "model"), tmp_path / "out.gguf", "f16").out
    ids = checkpoints.token_ids(RECIPE)
    expected = numpy_decoder.logits(separate(), config(RECIPES[RECIPE]), ids)
    with rt.open(out, n_ctx=128) as session:
        found = session.logits(ids)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-3


@pytest.mark.usefixtures("one_file")
def test_latent_weights_are_known_by_their_role(tmp_path: Path) -> None:
    """None of the linear tensors has a name that ends as Llama's do."""
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    model = build(tmp_path / "model", quantization_config=online)
    out = convert(model, tmp_path / "out.gguf", "tq2_0").out
    written = {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(out).tensors}
    for layer in range(RECIPES[RECIPE].layers):
        for source, name in (("self_attn.qkv", "attn_qkv"), ("mlp.gate_up", "ffn_up"), ("mlp.down", "ffn_down")):
            expected = packed_checkpoints.absmean(fused()[f"model.layers.{layer}.{source}.weight"])
            np.testing.assert_allclose(written[f"blk.{layer}.{name}.weight"], expected, rtol=2.0**-11)  # fp16 scales


@pytest.mark.usefixtures("one_file")
def test_the_registry_finds_it_beside_the_others() -> None:
    named = architecture_for({"architectures": ["OneFileForCausalLM"]})
    assert (named.name, named.targets, named in architectures()) == ("phi3", None, True)
    assert len(architectures()) > 1
