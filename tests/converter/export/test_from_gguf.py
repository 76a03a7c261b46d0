"""The way back: a GGUF file becomes a Hugging Face folder that becomes the same file again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gguf import Keys

from tests import maple_model
from tests.checkpoint_recipes import RECIPES
from tests.command_line import run_captured
from tests.converter.tokenizer.test_real_tokenizers import llama_cpp_model, recorded
from tests.gguf_edit import rewrite
from tests.packed_checkpoints import PACKED
from tritgguf.converter import UnsupportedError, convert, form_named, quantize
from tritgguf.converter.gguf_io.metadata import Value
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.architecture import Architecture, architectures
from tritgguf.converter.tokenizer import read_tokenizer
from tritgguf.converter.tokenizer.from_gguf import tokenizer_files

FLOATS = form_named(None, dtype="f32")
THERE_AND_BACK = [
    "llama1", "llama-gqa", "llama-tied", "llama-biases", "llama-head-dim", "llama-llama3", "llama-linear", "llama-yarn",
    "llama-yarn-betas", "llama-yarn-attention-factor", "mistral-window", "qwen2", "qwen2-tied", "qwen2-yarn", "qwen3",
    "qwen3-tied", "qwen3-yarn", "hunyuan-alpha", "gemma3", "gemma3-linear", "smollm3", "smollm3-yarn", "phi3",
    "granite", "granite-biases", "olmo2", "olmo2-gqa", "olmo3", "olmo3-types",
    "phi3-longrope-long", "phi3-longrope-short", "qwen35", "qwen35-one-to-one", "qwen3moe", "qwen3next",
    "qwen3next-ternary", "mixtral",
]  # fmt: skip
TERNARY = ["falcon3", "llama-rows", "qwen3-tensor", "bitcpm", "14b-seed", "2b4t", "maple"]
ROUNDS_ITSELF = "1bitllm"
# llama.cpp's vocabularies, whose token ids its authors recorded from transformers
RECORDED = ("gpt-2", "starcoder", "refact", "llama-spm", "llama-bpe", "qwen2")


def keys_but_name(file: GgufFile) -> dict[str, Value]:
    return {key: value for key, value in file.metadata.items() if key != Keys.General.NAME}


def assert_same_file(found: Path, expected: Path) -> None:
    one, other = read_gguf(expected), read_gguf(found)
    assert keys_but_name(other) == keys_but_name(one)
    assert list(other.tensors) == list(one.tensors)
    for name, tensor in one.tensors.items():
        assert (other.tensors[name].dtype, other.tensors[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(other.tensors[name].data, tensor.data, err_msg=name)


@pytest.mark.parametrize("name", THERE_AND_BACK)
def test_there_and_back_and_there_again_is_the_same_file(name: str, model, tmp_path: Path) -> None:
    made = convert(model(name), tmp_path / "made.gguf", "f16", check=False).out
    folder = quantize(made, tmp_path / "folder", FLOATS).out
    again = convert(folder, tmp_path / "again.gguf", "f16", check=False).out
    assert_same_file(again, made)


@pytest.mark.parametrize("architecture", architectures(), ids=lambda architecture: architecture.name)
def test_every_architecture_is_among_them(architecture: Architecture) -> None:
    """Each of these recipes goes back to a folder that becomes the same file again."""
    recipes = {**RECIPES, **{name: packed.base for name, packed in PACKED.items()}, "maple": maple_model.RECIPE}
    classes = {recipes[name].architecture for name in (*THERE_AND_BACK, *TERNARY, ROUNDS_ITSELF)}
    assert classes & architecture.classes.keys()


def test_a_class_that_rounds_its_weights_goes_back_packed(model, tmp_path: Path) -> None:
    """With other floats than the latent weights it would compute another model."""
    made = convert(model(ROUNDS_ITSELF), tmp_path / "made.gguf", "auto", check=False).out
    with pytest.raises(UnsupportedError, match=r"BitnetForCausalLM rounds its weights .* choose a packed scheme"):
        quantize(made, tmp_path / "folder", FLOATS)
    folder = quantize(made, tmp_path / ROUNDS_ITSELF, "bitnet").out
    assert_same_file(convert(folder, tmp_path / "again.gguf", "auto", check=False).out, made)


@pytest.mark.parametrize("name", TERNARY)
def test_a_ternary_file_becomes_floats_on_its_grid(name: str, model, tmp_path: Path) -> None:
    made = convert(model(name), tmp_path / "made.gguf", "auto", check=False).out
    folder = quantize(made, tmp_path / "folder", FLOATS).out
    again = convert(folder, tmp_path / "again.gguf", "auto", check=False).out
    one, other = read_gguf(made).tensors, read_gguf(again).tensors
    for tensor in one.values():
        if tensor.name.endswith(".scale"):
            continue
        scale = one.get(tensor.name.removesuffix(".weight") + ".scale")
        factor = 1 if scale is None else scale.read(slice(None))
        expected = tensor.read(slice(None)) * factor
        scale = other.get(tensor.name.removesuffix(".weight") + ".scale")
        factor = 1 if scale is None else scale.read(slice(None))
        np.testing.assert_array_equal(other[tensor.name].read(slice(None)) * factor, expected, err_msg=tensor.name)


def test_a_key_that_is_not_understood_stops_the_way_back(model, tmp_path: Path) -> None:
    made = convert(model("qwen3"), tmp_path / "made.gguf", "f16", check=False).out
    odd = rewrite(made, tmp_path / "odd.gguf", keys={"qwen3.expert_count": 8})
    with pytest.raises(UnsupportedError, match=r"odd\.gguf: qwen3\.expert_count is 8, which no key of config\.json"):
        quantize(odd, tmp_path / "folder", FLOATS)
    odd = rewrite(made, tmp_path / "odd2.gguf", keys={"qwen3.rope.scaling.type": "su"})
    with pytest.raises(UnsupportedError, match=r"rope\.scaling\.type is 'su'; known are none, linear and yarn"):
        quantize(odd, tmp_path / "folder", FLOATS)
    odd = rewrite(made, tmp_path / "half.gguf", keys={"qwen3.rope.dimension_count": 64})
    with pytest.raises(UnsupportedError, match=r"dimension_count is 64, but no config\.json .* the nearest gives 128"):
        quantize(odd, tmp_path / "folder", FLOATS)
    odd = rewrite(made, tmp_path / "odd3.gguf", keys={"general.architecture": "gemma"})
    with pytest.raises(UnsupportedError, match="isn't known for architecture gemma; known are "):
        quantize(odd, tmp_path / "folder", FLOATS)
    assert not (tmp_path / "folder").exists()


def test_a_tokenizer_that_is_not_known_is_left_out_with_a_note(model, tmp_path: Path, monkeypatch, capsys) -> None:
    made = convert(model("qwen3"), tmp_path / "made.gguf", "f16", check=False).out
    odd = rewrite(made, tmp_path / "odd.gguf", keys={"tokenizer.ggml.pre": "viking"})
    code, out, err = run_captured(monkeypatch, capsys, "quantize", "--dequantize", odd, tmp_path / "folder")
    assert (code, out.startswith(f"{tmp_path / 'folder'}: ")) == (0, True)
    assert "note: the folder gets no tokenizer: tokenizer.ggml.pre is 'viking'" in err
    assert not list((tmp_path / "folder").glob("tokenizer*"))


def test_rounded_tensors_are_noted(model, tmp_path: Path, monkeypatch, capsys) -> None:
    made = convert(model("llama-biases"), tmp_path / "made.gguf", "f16", check=False).out
    _, _, err = run_captured(monkeypatch, capsys, "quantize", "--dequantize", made, tmp_path / "folder")
    assert re.search(r"note: \d+ tensors are rounded to f16, .*; --dtype f32 keeps every value", err)
    _, _, err = run_captured(monkeypatch, capsys, "quantize", "--dequantize", "--dtype", "f32", made, tmp_path / "f32")
    assert err == ""


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3next", "qwen35"])
def test_a_scheme_takes_a_gguf_file_as_well(name: str, model, tmp_path: Path) -> None:
    made = convert(model(name), tmp_path / "made.gguf", "tq2_0", check=False).out
    folder = quantize(made, tmp_path / "folder", "absmean-g64").out
    again = convert(folder, tmp_path / "again.gguf", "tq2_0", check=False).out
    one, other = read_gguf(made).tensors, read_gguf(again).tensors
    for name, tensor in one.items():
        if tensor.dtype == "TQ2_0":
            np.testing.assert_array_equal(other[name].data, tensor.data, err_msg=name)


@pytest.mark.network
@pytest.mark.parametrize("name", RECORDED)
def test_the_tokenizer_gives_the_ids_that_transformers_gave(name: str, tmp_path: Path) -> None:
    file = read_gguf(llama_cpp_model(f"{name}.gguf"))
    for part, content in tokenizer_files(file.metadata).items():
        (tmp_path / part).write_text(json.dumps(content), encoding="utf-8")
    tokens = file.value(Keys.Tokenizer.LIST)
    assert isinstance(tokens, list)
    tokenizer = read_tokenizer(tmp_path, n_vocab=len(tokens), config={"eos_token_id": 0})
    texts, ids = recorded(name)
    assert [tokenizer.encode(text) for text in texts] == ids
