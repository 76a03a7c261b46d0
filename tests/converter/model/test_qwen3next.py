"""Qwen3-Next: a linear attention's rows, stored key head by key head, and an expert that computes for every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import checkpoints, gguf_weights, packed_checkpoints, quantized_checkpoints
from tests.checkpoint_recipes import RECIPES, Recipe
from tests.converter.model.test_experts import WRONG, logits_error, packed, write
from tests.quantized_checkpoints import QUANTIZED, Quantized, gptq
from tests.quantized_layers import Layer
from tritgguf.converter import convert, form_named, quantize
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.errors import SourceError, TensorError
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.verification.verification import verify

Floats = NDArray[np.float32]
Tensors = dict[str, Floats]
Folder = Callable[[str], Path]
NET, MLP = "model.layers.0.linear_attn.", "model.layers.0.mlp."
MIXED = f"{NET}in_proj_qkvz.weight"


def heads(recipe: Recipe) -> tuple[int, int, int]:
    """Return the numbers of key heads, of value heads for each, and of a head's values."""
    n_keys, n_values = (recipe.extra[f"linear_num_{kind}_heads"] for kind in ("key", "value"))
    return n_keys, n_values // n_keys, recipe.extra["linear_key_head_dim"]


def separated(mixed: Floats, recipe: Recipe) -> list[Floats]:
    """Return views of queries, keys, values and gates, each (n_key_heads, rows, n_columns).

    As `fix_query_key_value_ordering` of transformers' modeling_qwen3_next.py takes them from the outputs.
    """
    n_keys, n_values, size = heads(recipe)
    rows = mixed.reshape(n_keys, -1, mixed.shape[-1])
    assert rows.shape[1] == (2 + 2 * n_values) * size
    return np.split(rows, [size, 2 * size, (2 + n_values) * size], axis=1)


def in_file(mixed: Floats, recipe: Recipe) -> tuple[Floats, Floats]:
    """Return what the file has of in_proj_qkvz: queries, keys and values in one tensor, gates in another."""
    *first, gates = (part.reshape(-1, mixed.shape[-1]) for part in separated(mixed, recipe))
    return np.concatenate(first), gates


def dequantized(file: Path) -> Tensors:
    return {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(file).tensors}


# --- what is where -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3next", "qwen3next-ternary"])
def test_the_file_has_what_the_graph_reads(name: str, model: Folder, tmp_path: Path) -> None:
    found = dequantized(convert(model(name), tmp_path / "out.gguf", "f32", check=False).out)
    stored, recipe = checkpoints.weights(name), RECIPES[name]
    layer = recipe.layers - 1 if name == "qwen3next-ternary" else 1
    net, mlp = f"model.layers.{layer}.linear_attn.", f"model.layers.{layer}.mlp."
    channels, gates = in_file(stored[f"{net}in_proj_qkvz.weight"], recipe)
    for key, values in {
        "attn_qkv.weight": channels,
        "attn_gate.weight": gates,
        "ssm_ba.weight": stored[f"{net}in_proj_ba.weight"],
        "ssm_conv1d.weight": stored[f"{net}conv1d.weight"][:, 0],
        "ssm_dt.bias": stored[f"{net}dt_bias"],
        "ssm_norm.weight": stored[f"{net}norm.weight"],
        "ssm_out.weight": stored[f"{net}out_proj.weight"],
        "attn_norm.weight": stored[f"model.layers.{layer}.input_layernorm.weight"] + np.float32(1),
        "post_attention_norm.weight": stored[f"model.layers.{layer}.post_attention_layernorm.weight"] + np.float32(1),
        "ffn_gate_inp.weight": stored[f"{mlp}gate.weight"],
        "ffn_gate_inp_shexp.weight": stored[f"{mlp}shared_expert_gate.weight"],
        "ffn_gate_shexp.weight": stored[f"{mlp}shared_expert.gate_proj.weight"],
        "ffn_up_shexp.weight": stored[f"{mlp}shared_expert.up_proj.weight"],
        "ffn_down_shexp.weight": stored[f"{mlp}shared_expert.down_proj.weight"],
    }.items():
        np.testing.assert_array_equal(found[f"blk.{layer}.{key}"], values, err_msg=key)
    np.testing.assert_allclose(found[f"blk.{layer}.ssm_a"], -np.exp(stored[f"{net}A_log"]), rtol=1e-6)
    full = recipe.extra.get("layer_types", ["", "", "", "full_attention"]).index("full_attention")
    assert f"blk.{full}.attn_q.weight" in found
    assert f"blk.{full}.attn_qkv.weight" not in found


@pytest.mark.parametrize(("weights", "type_name"), [("ternary-row", "tq1_0"), ("ternary-block", "q2_0")])
def test_ternary_rows_stay_exact_in_another_order(weights: str, type_name: str, tmp_path: Path) -> None:
    recipe = replace(RECIPES["qwen3next"], weights=weights)
    folder = checkpoints.build("qwen3next", tmp_path / "model", recipe)
    result = convert(folder, tmp_path / "out.gguf", type_name, check=False)
    linear = [tensor for tensor in result.plan.tensors if tensor.spec.role == "linear"]
    assert all(tensor.exact and tensor.codec.name == type_name for tensor in linear)
    found, stored = dequantized(result.out), checkpoints.weights("qwen3next", recipe)
    channels, gates = in_file(stored[MIXED], recipe)
    np.testing.assert_array_equal(found["blk.0.attn_qkv.weight"], channels)
    np.testing.assert_array_equal(found["blk.0.attn_gate.weight"], gates)


@pytest.mark.parametrize("bits", [packed_checkpoints.SHORT, packed_checkpoints.LONG])
def test_packed_rows_keep_their_codes(bits: int, tmp_path: Path) -> None:
    """The graph multiplies by no scale, so a float32 one is rounded to fp16, and the plan says so."""
    folder, weights = packed(tmp_path / "model", bits, "qwen3next")
    result = convert(folder, tmp_path / "out.gguf", "tq2_0", check=False)
    exact = {tensor.spec.name: tensor.exact for tensor in result.plan.tensors if tensor.spec.role == "linear"}
    assert set(exact.values()) == {bits == packed_checkpoints.SHORT}
    found, recipe = dequantized(result.out), RECIPES["qwen3next"]
    channels, gates = in_file(weights[MIXED], recipe)
    rounding = 0 if bits == packed_checkpoints.SHORT else 2.0**-11
    for part, values in (("qkv", channels), ("gate", gates)):
        np.testing.assert_allclose(found[f"blk.0.attn_{part}.weight"], values, rtol=rounding)
    assert not verify(folder, result.out).problems


def test_rows_of_a_quantized_checkpoint_keep_their_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ's tensors are read to tell whether they are codes."""
    recipe = replace(RECIPES["qwen3next"], dtype="F16", layers=1, experts=2)
    monkeypatch.setitem(QUANTIZED, "mixed", Quantized(recipe, "gptq", Layer(2, 128), gptq()))
    result = convert(quantized_checkpoints.build("mixed", tmp_path / "model"), tmp_path / "out.gguf", check=False)
    channels, gates = in_file(quantized_checkpoints.weights("mixed")[MIXED], recipe)
    found = dequantized(result.out)
    np.testing.assert_array_equal(found["blk.0.attn_qkv.weight"], channels)
    np.testing.assert_array_equal(found["blk.0.attn_gate.weight"], gates)
    assert all(tensor.exact for tensor in result.plan.tensors if tensor.spec.role == "linear")


# --- mix-ups -----------------------------------------------------------------------------------------------------


def swapped(first: int, second: int) -> Callable[[Tensors], None]:
    """Return what swaps two of queries (0), keys (1), values (2) and gates (3) of the first key head."""

    def swap(tensors: Tensors) -> None:
        parts = separated(tensors[MIXED], RECIPES["qwen3next"])
        parts[first][0], parts[second][0] = parts[second][0].copy(), parts[first][0].copy()

    return swap


def swapped_value_heads(tensors: Tensors) -> None:
    """Swap the second value head of the first key head with the first of the second, as Qwen3.5's graph has them."""
    values, size = separated(tensors[MIXED], RECIPES["qwen3next"])[2], 64
    values[0, size:], values[1, :size] = values[1, :size].copy(), values[0, size:].copy()


def swapped_beta_and_alpha(tensors: Tensors) -> None:
    rows = tensors[f"{NET}in_proj_ba.weight"].reshape(2, 2, 2, -1)  # key heads, beta and alpha, value heads
    rows[:, 0], rows[:, 1] = rows[:, 1].copy(), rows[:, 0].copy()


def shared_gate_and_up(tensors: Tensors) -> None:
    gate, up = (f"{MLP}shared_expert.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def open_gate(tensors: Tensors) -> None:
    tensors[f"{MLP}shared_expert_gate.weight"][:] = 0


@pytest.mark.parametrize(
    ("mix_up", "where"),
    [
        (swapped(0, 1), {"attn_qkv.weight"}),
        (swapped(2, 3), {"attn_qkv.weight", "attn_gate.weight"}),
        (swapped_value_heads, {"attn_qkv.weight"}),
        (swapped_beta_and_alpha, {"ssm_ba.weight"}),
        (shared_gate_and_up, {"ffn_gate_shexp.weight", "ffn_up_shexp.weight"}),
        (open_gate, {"ffn_gate_inp_shexp.weight"}),
    ],
    ids=["q and k", "v and z", "value heads", "beta and alpha", "gate and up", "shared gate"],
)
def test_a_mix_up_would_show(mix_up: Callable[[Tensors], None], where: set[str], model: Folder, tmp_path: Path) -> None:
    """In the logits, and to `verify`."""
    tensors = checkpoints.weights("qwen3next")
    mix_up(tensors)
    out = convert(write(tmp_path / "wrong", "qwen3next", tensors), tmp_path / "out.gguf", "f16", check=False).out
    assert logits_error(out, "qwen3next") > WRONG
    bad = {check.name for check in verify(model("qwen3next"), out).tensors if check.verdict == "wrong"}
    assert bad == {f"blk.0.{name}" for name in where}


# --- folders -----------------------------------------------------------------------------------------------------


def test_quantize_writes_the_mixed_rows_as_one_tensor(model: Folder, tmp_path: Path) -> None:
    out = quantize(model("qwen3next"), tmp_path / "out", "bitnet").out
    stored, originals = read_tensors(out), read_tensors(model("qwen3next"))
    assert originals.keys() <= stored.keys()
    assert not [name for name in stored if "(" in name]
    values = dequantized(convert(out, tmp_path / "out.gguf", "f32", check=False).out)
    floats = quantize(out, tmp_path / "floats", form_named(None, dtype="f32")).out
    mixed = read_tensors(floats)[MIXED].read(slice(None))
    channels, gates = in_file(mixed, RECIPES["qwen3next"])
    np.testing.assert_array_equal(values["blk.0.attn_qkv.weight"], channels)
    np.testing.assert_array_equal(values["blk.0.attn_gate.weight"], gates)


def test_inspect_shares_the_bytes_of_the_mixed_rows(model: Folder) -> None:
    found = inspect(model("qwen3next-ternary"))
    assert found.refused is None
    assert sum(tensor.n_bytes for tensor in found.tensors) == found.file_bytes
    sizes = {tensor.name: tensor.n_bytes for tensor in found.tensors}
    assert sizes["blk.0.attn_qkv.weight"] == 3 * sizes["blk.0.attn_gate.weight"]
    assert found.sizes["tq2_0"].exact


# --- what is refused ---------------------------------------------------------------------------------------------


def test_mixed_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    tensors = checkpoints.weights("qwen3next")
    tensors[MIXED] = tensors[MIXED][:-64]
    with pytest.raises(SourceError, match=r"in_proj_qkvz\.weight has the shape \(704, 256\), .* for \(768, 256\)"):
        convert(write(tmp_path / "model", "qwen3next", tensors), tmp_path / "out.gguf", "f16", check=False)


def test_a_nan_is_named_by_its_place_in_the_checkpoint(tmp_path: Path) -> None:
    tensors = checkpoints.weights("qwen3next")
    tensors[MIXED][700, 4] = np.nan
    with pytest.raises(TensorError, match=r"in_proj_qkvz\.weight has 1 NaN .* row 700, column 4"):
        convert(write(tmp_path / "model", "qwen3next", tensors), tmp_path / "out.gguf", "tq2_0", check=False)
