"""Tensors that are made of several of a checkpoint's, or of changed ones, where these are packed or an adapter's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests import checkpoints, gguf_weights, packed_checkpoints, quantized_checkpoints, tiny_tokenizers
from tests import foreign_gguf as files
from tests.checkpoint_recipes import RECIPES, Recipe, config
from tests.quantized_checkpoints import QUANTIZED, Quantized, gptq
from tests.quantized_layers import Layer
from tritgguf.converter import convert
from tritgguf.converter.core.tensors import CodedTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.derived import with_columns
from tritgguf.converter.model.open import open_model
from tritgguf.converter.quant.grids import find_grid

Floats = NDArray[np.float32]
RANK, SCALING = 2, 0.5
# What is stacked, has its columns reordered, its rows reordered, or is replaced where the graph adds a constant to it.
CHANGED = {
    "qwen3moe": (["model.layers.1.mlp.experts.5.down_proj", "model.layers.0.mlp.experts.2.gate_proj"], []),
    "mixtral": (["model.layers.1.block_sparse_moe.experts.3.w2", "model.layers.0.self_attn.q_proj"], []),
    "qwen3next": (["model.layers.0.linear_attn.in_proj_qkvz", "model.layers.1.mlp.shared_expert.up_proj"], []),
    "qwen35": (["model.layers.0.linear_attn.out_proj", "model.layers.1.linear_attn.in_proj_qkv"], ["model.norm"]),
}


def as_f32(folder: Path, recipe: Recipe, tensors: dict[str, Floats]) -> Path:
    """Write a checkpoint of these tensors as float32."""
    folder.mkdir(parents=True)
    tiny_tokenizers.write(recipe.tokenizer, folder)
    packed_checkpoints.write_config(folder, config(replace(recipe, dtype="F32")))
    stored = {key: packed_checkpoints.floats(values, "F32") for key, values in tensors.items()}
    packed_checkpoints.write_tensors(folder, stored)
    return folder


def adapter_for(folder: Path, tensors: dict[str, Floats], modules: list[str], saved: list[str]) -> Path:
    """Write a LoRA adapter of PEFT's form, and merge it into `tensors`."""
    rng, entries = np.random.default_rng(7), {}
    for module in modules:
        n_rows, n_columns = tensors[f"{module}.weight"].shape
        left = rng.standard_normal((n_rows, RANK)).astype(np.float32)
        right = rng.standard_normal((RANK, n_columns)).astype(np.float32)
        entries |= {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left}
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + np.float32(SCALING) * (left @ right)
    for module in saved:
        tensors[f"{module}.weight"] = entries[f"{module}.weight"] = 2 * tensors[f"{module}.weight"] + 1
    folder.mkdir()
    save_file(
        {f"base_model.model.{key}": values for key, values in entries.items()}, folder / "adapter_model.safetensors"
    )
    names = {"target_modules": "|".join(modules).replace(".", r"\."), "modules_to_save": saved or None}
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK * SCALING, **names}
    (folder / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", CHANGED)
def test_an_adapter_is_merged_before_the_graph_s_tensors_are_made(name: str, tmp_path: Path) -> None:
    tensors, (modules, saved) = checkpoints.weights(name), CHANGED[name]
    model = as_f32(tmp_path / "model", RECIPES[name], tensors)
    before = convert(model, tmp_path / "before.gguf", "f32", check=False).out
    adapter = adapter_for(tmp_path / "adapter", tensors, modules, saved)
    merged = as_f32(tmp_path / "merged", RECIPES[name], tensors)
    expected = convert(merged, tmp_path / "expected.gguf", "f32", check=False).out
    out = convert(model, tmp_path / "out.gguf", "f32", lora=adapter, check=False).out
    found, wanted, old = ({t.name: t.data for t in gguf.GGUFReader(path).tensors} for path in (out, expected, before))
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-5, atol=1e-5, err_msg=key)
    n_parts = sum(2 if module.endswith("in_proj_qkvz") else 1 for module in (*modules, *saved))
    assert sum(not np.array_equal(old[key], values) for key, values in found.items()) == n_parts


def test_an_adapter_for_experts_that_are_ternary_needs_a_type(tmp_path: Path) -> None:
    name = "qwen3moe-ternary"
    tensors = checkpoints.weights(name)
    model = as_f32(tmp_path / "model", RECIPES[name], tensors)
    adapter = adapter_for(tmp_path / "adapter", tensors, ["model.layers.1.mlp.experts.4.up_proj"], [])
    with pytest.raises(UnsupportedError, match=r"experts\.\*\.up_proj\.weight: without the adapter its values are on"):
        convert(model, tmp_path / "out.gguf", lora=adapter, check=False)


def test_an_adapter_for_one_expert_of_a_fused_tensor_is_refused(tmp_path: Path) -> None:
    name = "qwen3moe"
    tensors = checkpoints.weights(name)
    adapter = adapter_for(tmp_path / "adapter", dict(tensors), ["model.layers.1.mlp.experts.4.down_proj"], [])
    experts = [f"model.layers.1.mlp.experts.{number}.down_proj.weight" for number in range(RECIPES[name].experts)]
    tensors["model.layers.1.mlp.experts.down_proj"] = np.stack([tensors.pop(expert) for expert in experts])
    model = as_f32(tmp_path / "model", RECIPES[name], tensors)
    with pytest.raises(SourceError, match=r"but the model has no tensor model\.layers\.1\.mlp\.experts\.4\.down_proj"):
        convert(model, tmp_path / "out.gguf", "f16", lora=adapter, check=False)


@pytest.mark.parametrize("kind", ["auto", "q4_0"])
def test_experts_of_a_quantized_checkpoint_keep_their_codes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPES["qwen3moe"], dtype="F16")
    monkeypatch.setitem(QUANTIZED, "experts", Quantized(recipe, "gptq", Layer(2, 128), gptq()))
    model = quantized_checkpoints.build("experts", tmp_path / "model")
    conversion = convert(model, tmp_path / "out.gguf", kind, check=False)
    found = {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(conversion.out).tensors}
    weights = quantized_checkpoints.weights("experts")
    for part in ("gate", "up", "down"):
        names = [f"model.layers.1.mlp.experts.{number}.{part}_proj.weight" for number in range(recipe.experts)]
        np.testing.assert_array_equal(found[f"blk.1.ffn_{part}_exps.weight"], np.stack([weights[key] for key in names]))
    assert all(tensor.exact for tensor in conversion.plan.tensors if tensor.spec.role == "linear")


def test_a_foreign_tensor_of_experts_has_a_grid_for_each(tmp_path: Path) -> None:
    """One expert has a code 2, which four levels are for; the others' codes are ternary."""
    kind = files.KINDS["PQ2_0"]
    codes, scales = files.coded(kind, (6, 256), 3)
    codes = np.minimum(codes, 1)
    codes[3, 7] = 2
    tensors = {"blk.0.ffn_up_exps.weight": ((3, 2, 256), *kind.tensor(codes, scales)[1:])}
    source = files.add_tensors(files.base_file(tmp_path / "base.gguf"), tmp_path / "in.gguf", tensors)
    tensor = read_gguf(source).tensors["blk.0.ffn_up_exps.weight"]
    parts = tensor.matrices()
    assert all(isinstance(part.coded, CodedTensor) for part in parts)
    grids = [find_grid(part) for part in parts]
    assert [grid.levels for grid in grids if grid is not None] == [3, 4, 3]
    whole = find_grid(tensor)
    assert whole is not None
    assert (whole.levels, whole.group) == (4, 128)
    for number, part in enumerate(parts):
        rows = slice(2 * number, 2 * number + 2)
        np.testing.assert_array_equal(part.read(slice(None)), files.weights(codes, scales)[rows])
        assert part.coded is not None
        np.testing.assert_array_equal(part.coded.read_codes(slice(None)).codes, codes[rows])


def test_columns_of_a_tensor_that_tells_late_whether_it_is_codes(tmp_path: Path) -> None:
    """GPTQ's tensors are read to tell; in another order of columns they keep their codes as well."""
    model = quantized_checkpoints.build("gptq", tmp_path / "model")
    opened = open_model(model)
    assert opened.tensors is not None
    stored = opened.tensors["model.layers.0.mlp.up_proj.weight"]
    assert not isinstance(stored, CodedTensor)
    columns = np.arange(stored.shape[1]).reshape(2, -1, 64).swapaxes(0, 1).ravel()
    found = with_columns(stored, columns, 64)
    grid = find_grid(found)
    assert grid is not None
    assert (grid.levels, grid.group) == (4, 64)
    coded = found.read_codes(slice(2, 5))
    assert coded is not None
    np.testing.assert_array_equal(coded.dequantize(), stored.read(slice(2, 5))[:, columns])
