"""Mixtures of experts: what each is stored as, mix-ups that would show, and what llama.cpp's graphs don't compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import tritgguf.runtime as rt
from tests import checkpoints, gguf_weights, numpy_decoder, packed_checkpoints, paths, tiny_tokenizers
from tests.checkpoint_recipes import RECIPES, config
from tests.decoder_layers import EXPERTS
from tritgguf.converter import convert, form_named, plan, quantize
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.errors import SourceError, TensorError, TritggufError, UnsupportedError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.verification.verification import verify

Floats = NDArray[np.float32]
Folder = Callable[[str], Path]
# What transformers 5 calls a layer's experts where they are one tensor, whatever the class.
FUSED = "model.layers.{}.mlp.experts.{}"
WRONG = 5e-2  # relative error of logits that no rounding explains


def write(folder: Path, name: str, tensors: dict[str, Floats], **changes: object) -> Path:
    """Write a recipe's checkpoint with other tensors, and changes to config.json; None removes a key."""
    recipe = RECIPES[name]
    folder.mkdir(parents=True)
    tiny_tokenizers.write(recipe.tokenizer, folder)
    keys = {key: value for key, value in {**config(recipe), **changes}.items() if value is not None}
    packed_checkpoints.write_config(folder, keys)
    stored = {key: packed_checkpoints.floats(values, recipe.dtype) for key, values in tensors.items()}
    packed_checkpoints.write_tensors(folder, stored)
    return folder


def expert(name: str, layer: int, number: int, part: int) -> str:
    """Return the checkpoint's name of an expert's gate (0), up (1) or down (2)."""
    module, *names = EXPERTS[RECIPES[name].architecture]
    return f"model.layers.{layer}.{module}.experts.{number}.{names[part]}.weight"


def stacked(name: str, layer: int, part: int, tensors: dict[str, Floats]) -> Floats:
    return np.stack([tensors[expert(name, layer, number, part)] for number in range(RECIPES[name].experts)])


def fused(name: str) -> dict[str, Floats]:
    """Return a recipe's tensors as transformers 5 keeps them: gate before up in each matrix of one tensor."""
    tensors = checkpoints.weights(name)
    module = EXPERTS[RECIPES[name].architecture][0]
    for layer in range(RECIPES[name].layers):
        gate, up, down = (stacked(name, layer, part, tensors) for part in range(3))
        tensors[FUSED.format(layer, "gate_up_proj")] = np.concatenate([gate, up], axis=1)
        tensors[FUSED.format(layer, "down_proj")] = down
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = tensors.pop(f"model.layers.{layer}.{module}.gate.weight")
    return {key: values for key, values in tensors.items() if ".experts." not in key or "_proj.weight" not in key}


def without_experts(name: str, tensors: dict[str, Floats]) -> dict[str, Floats]:
    names = {expert(name, layer, n, p) for layer in range(RECIPES[name].layers) for n in range(8) for p in range(3)}
    return {key: values for key, values in tensors.items() if key not in names}


def logits_error(file: Path, name: str) -> float:
    """Return how far the file's logits are from those that transformers computes of the recipe's checkpoint."""
    with np.load(paths.GOLDEN / "logits" / f"{name}.npz") as golden:
        expected, ids = golden["weights_int16"] * golden["weights_step"], golden["token_ids"].tolist()
    with rt.open(file, n_ctx=len(ids)) as session:
        found = session.logits(ids)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- one file, however the experts are stored --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3moe", "qwen3moe-ternary", "qwen3next-ternary", "mixtral", "mixtral-ternary"])
@pytest.mark.parametrize("type_name", ["f16", "tq2_0"])
def test_fused_and_separate_experts_give_the_same_file(name: str, type_name: str, tmp_path: Path) -> None:
    separate = write(tmp_path / "separate" / "model", name, checkpoints.weights(name))
    together = write(tmp_path / "together" / "model", name, without_experts(name, fused(name)))
    files = [convert(folder, folder.parent / "out.gguf", type_name, check=False) for folder in (separate, together)]
    assert files[0].out.read_bytes() == files[1].out.read_bytes()
    assert [tensor.reason for tensor in files[0].plan.tensors] == [tensor.reason for tensor in files[1].plan.tensors]


@pytest.mark.parametrize("name", ["qwen3moe-ternary", "qwen3next-ternary", "mixtral-ternary"])
def test_each_expert_is_where_the_graph_looks_for_it(name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", "tq2_0").out
    found = {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(out).tensors}
    weights, module = checkpoints.weights(name), EXPERTS[RECIPES[name].architecture][0]
    for layer in range(RECIPES[name].layers):
        for part, tensor in enumerate(("gate", "up", "down")):
            values = found[f"blk.{layer}.ffn_{tensor}_exps.weight"]
            np.testing.assert_array_equal(values, stacked(name, layer, part, weights))
        router = found[f"blk.{layer}.ffn_gate_inp.weight"]
        np.testing.assert_array_equal(router, weights[f"model.layers.{layer}.{module}.gate.weight"])
    assert gguf_weights.types(out)["blk.0.ffn_gate_inp.weight"] == "f32"


def test_a_ternary_router_stays_f32(tmp_path: Path) -> None:
    name, tensors = "qwen3moe-ternary", checkpoints.weights("qwen3moe-ternary")
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = np.sign(tensors[f"model.layers.{layer}.mlp.gate.weight"])
    out = convert(write(tmp_path / "model", name, tensors), tmp_path / "out.gguf", check=False).out
    assert gguf_weights.types(out)["blk.1.ffn_gate_inp.weight"] == "f32"


# --- mix-ups -----------------------------------------------------------------------------------------------------


def swapped_experts(name: str, tensors: dict[str, Floats]) -> None:
    for part in range(3):
        first, second = (expert(name, 1, number, part) for number in (0, 2))
        tensors[first], tensors[second] = tensors[second], tensors[first]


def swapped_gate_and_up(name: str, tensors: dict[str, Floats]) -> None:
    for number in range(RECIPES[name].experts):
        gate, up = (expert(name, 1, number, part) for part in (0, 1))
        tensors[gate], tensors[up] = tensors[up], tensors[gate]


def one_expert_s_up(name: str, tensors: dict[str, Floats]) -> None:
    first, second = (expert(name, 1, number, 1) for number in (1, 3))
    tensors[first] = tensors[second]


@pytest.mark.parametrize("name", ["qwen3moe", "mixtral"])
@pytest.mark.parametrize("mix_up", [swapped_experts, swapped_gate_and_up, one_expert_s_up])
def test_a_mix_up_would_show(mix_up: Callable[[str, dict[str, Floats]], None], name: str, tmp_path: Path) -> None:
    """In the logits, and to `verify`."""
    tensors = checkpoints.weights(name)
    right = write(tmp_path / "right", name, tensors)
    mix_up(name, tensors)
    out = convert(write(tmp_path / "wrong", name, tensors), tmp_path / "out.gguf", "f16", check=False).out
    assert logits_error(out, name) > WRONG
    bad = {check.name for check in verify(right, out).tensors if check.verdict == "wrong"}
    assert bad
    assert all(name.startswith("blk.1.ffn_") and name.endswith("_exps.weight") for name in bad)


# --- packed experts ----------------------------------------------------------------------------------------------


def packed(folder: Path, scales_bits: int, name: str = "qwen3moe") -> tuple[Path, dict[str, Floats]]:
    """Write a recipe with bitnet-packed linear layers; return the folder, and what it computes with."""
    stored: packed_checkpoints.Stored = {}
    weights: dict[str, Floats] = {}
    for key, values in checkpoints.weights(name).items():
        if not checkpoints.is_linear(key):
            weights[key], stored[key] = values, packed_checkpoints.floats(values, "BF16")
            continue
        trits = (np.sign(values) * (np.abs(values) > 0.03)).astype(np.int8)
        digits = packed_checkpoints.pack_bitnet(trits)
        scale = packed_checkpoints._scales(key, (1,), values.shape[1], scales_bits)
        stored |= {key: ("U8", digits.shape, digits.tobytes()), f"{key}_scale": packed_checkpoints.floats(scale, "F32")}
        weights[key] = trits * scale
    write(folder, name, {}, quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear"})
    packed_checkpoints.write_tensors(folder, stored)
    return folder, weights


@pytest.mark.parametrize("bits", [packed_checkpoints.SHORT, packed_checkpoints.LONG])
@pytest.mark.parametrize("type_name", ["tq2_0", "q4_0"])
def test_packed_experts_are_exact(bits: int, type_name: str, tmp_path: Path) -> None:
    """Scales that fp16 would round are stored as float32, one for each expert, and the graph multiplies by them."""
    folder, weights = packed(tmp_path / "model", bits)
    conversion = convert(folder, tmp_path / "out.gguf", type_name)
    assert all(tensor.exact for tensor in conversion.plan.tensors if tensor.spec.role == "linear")
    found = {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(conversion.out).tensors}
    for part, tensor in enumerate(("gate", "up", "down")):
        values = found[f"blk.1.ffn_{tensor}_exps.weight"]
        if bits == packed_checkpoints.LONG:
            values = values * found[f"blk.1.ffn_{tensor}_exps.scale"][:, None, None]
        np.testing.assert_array_equal(values, stacked("qwen3moe", 1, part, weights))
    checked = verify(folder, conversion.out)
    assert not checked.problems
    assert {check.verdict for check in checked.tensors if "_exps" in check.name} == {"exact"}
    ids = checkpoints.token_ids("qwen3moe")
    expected = numpy_decoder.logits(weights, config(RECIPES["qwen3moe"]), ids)
    with rt.open(conversion.out, n_ctx=len(ids)) as session:
        found_logits = session.logits(ids)
    assert np.linalg.norm(found_logits - expected) / np.linalg.norm(expected) < WRONG


def test_base_3_packed_experts_are_exact(tmp_path: Path) -> None:
    """Each group of 64 columns has a scale of its own."""
    stored: packed_checkpoints.Stored = {}
    weights = checkpoints.weights("mixtral")
    for key, values in weights.items():
        if not checkpoints.is_linear(key):
            stored[key] = packed_checkpoints.floats(values, "BF16")
            continue
        trits, n_rows = np.sign(values).astype(np.int8), len(values)
        digits = packed_checkpoints.pack_base3(trits)
        scales = packed_checkpoints._scales(key, (n_rows, values.shape[1] // 64), 64, packed_checkpoints.SHORT)
        stored |= {
            key: ("U8", digits.shape, digits.tobytes()),
            f"{key}.scales": packed_checkpoints.floats(scales, "F32"),
        }
        weights[key] = trits * np.repeat(scales, 64, axis=1)
    write(tmp_path / "model", "mixtral", {})
    packed_checkpoints.write_tensors(tmp_path / "model", stored)
    out = convert(tmp_path / "model", tmp_path / "out.gguf", "q4_0", check=False).out
    found = {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(out).tensors}
    for part, tensor in enumerate(("gate", "up", "down")):
        np.testing.assert_array_equal(found[f"blk.1.ffn_{tensor}_exps.weight"], stacked("mixtral", 1, part, weights))
    assert {check.verdict for check in verify(tmp_path / "model", out).tensors if "_exps" in check.name} == {"exact"}


def test_a_wrong_scale_of_one_expert_is_found(tmp_path: Path) -> None:
    folder, _ = packed(tmp_path / "model", packed_checkpoints.LONG)
    out = convert(folder, tmp_path / "out.gguf", "tq2_0", check=False).out
    scale = read_gguf(out).tensors["blk.0.ffn_up_exps.scale"]
    assert scale.shape == (8,)
    content = bytearray(out.read_bytes())
    place = content.index(scale.data.tobytes()) + 5 * 4
    content[place : place + 4] = np.float32(0.5).tobytes()
    out.write_bytes(content)
    assert {check.name for check in verify(folder, out).tensors if not check.good} == {"blk.0.ffn_up_exps.weight"}


def test_inspect_shows_the_experts(tmp_path: Path) -> None:
    folder, _ = packed(tmp_path / "model", packed_checkpoints.SHORT)
    found = inspect(folder)
    assert found.refused is None
    facts = {tensor.name: tensor for tensor in found.tensors}
    experts = facts["blk.0.ffn_down_exps.weight"]
    assert experts.shape == (8, 256, 256)
    assert experts.grid is not None
    assert experts.grid.extent == "matrix"
    assert experts.n_bytes == 8 * (256 * 256 // 4 + 4)
    assert {"tq1_0", "tq2_0", "q4_0"} <= set(experts.exact_types)
    assert sum(tensor.n_bytes for tensor in found.tensors) == found.file_bytes
    assert found.sizes["tq2_0"].exact
    assert found.sizes["tq2_0"].file_bytes == convert(folder, tmp_path / "out.gguf", "tq2_0").plan.file_bytes


@pytest.mark.parametrize("name", ["qwen3moe", "mixtral"])
def test_inspect_counts_the_bytes_of_fused_experts_once(name: str, tmp_path: Path) -> None:
    found = inspect(write(tmp_path / "model", name, without_experts(name, fused(name))))
    assert found.refused is None
    assert sum(tensor.n_bytes for tensor in found.tensors) == found.file_bytes


def test_one_expert_off_the_grid_is_told(tmp_path: Path) -> None:
    name, tensors = "qwen3moe-ternary", checkpoints.weights("qwen3moe-ternary")
    tensors[expert(name, 0, 4, 2)] = checkpoints.weights("qwen3moe")[expert("qwen3moe", 0, 4, 2)]
    planned = plan(write(tmp_path / "model", name, tensors))
    found = {tensor.spec.name: tensor for tensor in planned.tensors if tensor.spec.role == "linear"}
    assert found.pop("blk.0.ffn_down_exps.weight").reason.startswith("not on a grid: kept as ")
    assert all(tensor.codec.ternary for tensor in found.values())


# --- GGUF sources, quantize --------------------------------------------------------------------------------------


def test_a_gguf_file_s_experts_are_treated_alike(model: Folder, tmp_path: Path) -> None:
    floats = convert(model("qwen3moe-ternary"), tmp_path / "f16.gguf", "f16", check=False).out
    direct = read_gguf(convert(model("qwen3moe-ternary"), tmp_path / "direct.gguf", "tq2_0", check=False).out)
    again = convert(floats, tmp_path / "again.gguf", "tq2_0", check=False)
    assert all(tensor.exact for tensor in again.plan.tensors)
    assert {tensor.reason.split(",")[0] for tensor in again.plan.tensors if "_exps" in tensor.spec.name} == {
        "on a ternary grid per row"
    }
    found = read_gguf(again.out)
    assert {name: (t.dtype, t.data.tobytes()) for name, t in found.tensors.items()} == {
        name: (t.dtype, t.data.tobytes()) for name, t in direct.tensors.items()
    }


@pytest.mark.parametrize("scheme", ["bitnet", "absmean-g64", "uniform-d1"])
@pytest.mark.parametrize("name", ["qwen3moe", "mixtral"])
def test_quantize_writes_each_expert_under_its_own_name(name: str, scheme: str, model: Folder, tmp_path: Path) -> None:
    quantized = quantize(model(name), tmp_path / "separate", scheme)
    assert ("transformers can't load packed experts" in " ".join(quantized.plan.notes)) == (scheme != "uniform-d1")
    together = write(tmp_path / "fused", name, without_experts(name, fused(name)))
    quantize(together, tmp_path / "together", scheme)
    files = [tmp_path / folder / "model.safetensors" for folder in ("separate", "together")]
    assert files[0].read_bytes() == files[1].read_bytes()
    stored = read_tensors(tmp_path / "separate")
    originals = read_tensors(model(name))
    assert originals.keys() <= stored.keys()
    grids = {tensor.spec.name: tensor.grid for tensor in plan(tmp_path / "separate", "auto").tensors}
    if scheme == "bitnet":
        scales = {stored[f"{expert(name, 0, n, 0)}_scale"].read(slice(None)).item() for n in range(4)}
        assert len(scales) == 4  # each expert its own
        assert grids["blk.0.ffn_gate_exps.weight"] is not None


def test_the_way_back_multiplies_each_expert_by_its_scale(tmp_path: Path) -> None:
    folder, weights = packed(tmp_path / "model", packed_checkpoints.LONG)
    made = convert(folder, tmp_path / "made.gguf", "tq2_0", check=False).out
    stored = read_tensors(quantize(made, tmp_path / "floats", form_named(None, dtype="f32")).out)
    assert stored.keys() == weights.keys()
    for name in filter(checkpoints.is_linear, weights):
        np.testing.assert_array_equal(stored[name].read(slice(None)), weights[name], err_msg=name)


def test_latent_experts_are_rounded_one_by_one(model: Folder, tmp_path: Path) -> None:
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    tensors = checkpoints.weights("qwen3moe")
    folder = write(tmp_path / "model", "qwen3moe", tensors, quantization_config=online)
    out = convert(folder, tmp_path / "out.gguf", "q4_0").out
    found = {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(out).tensors}
    expected = np.stack([packed_checkpoints.absmean(tensors[expert("qwen3moe", 1, n, 2)]) for n in range(8)])
    values = found["blk.1.ffn_down_exps.weight"] * found["blk.1.ffn_down_exps.scale"][:, None, None]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    together = write(
        tmp_path / "fused", "qwen3moe", without_experts("qwen3moe", fused("qwen3moe")), quantization_config=online
    )
    with pytest.raises(UnsupportedError, match=r"gate_up_proj holds the matrices of all experts"):
        convert(together, tmp_path / "fused.gguf", "q4_0")


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is false, .* by their sum"),
        ("qwen3moe", {"norm_topk_prob": None}, "norm_topk_prob is false, "),  # the class's default
        ("qwen3moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\], .* in every layer"),
        ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2, .* in every layer"),
        ("qwen3moe", {"attention_bias": True}, "attention_bias is true, .* qwen3moe graph"),
        ("qwen3moe", {"num_experts": None}, "num_experts must be a positive integer"),
        ("qwen3moe", {"num_experts": 2000}, "num_experts must be at most 1024"),
        ("qwen3moe", {"num_local_experts": 4}, "num_experts is 8, but num_local_experts is 4"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are only 8 experts"),
        ("qwen3moe", {"moe_intermediate_size": "256"}, "moe_intermediate_size must be a positive integer"),
        ("qwen3next", {"norm_topk_prob": False}, "norm_topk_prob is false, .* qwen3next graph divides .* by their sum"),
        ("qwen3next", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\], .* in every layer"),
        ("qwen3next", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2, .* in every layer"),
        ("qwen3next", {"attention_bias": True}, "attention_bias is true, .* qwen3next graph"),
        ("qwen3next", {"num_experts": 0}, "num_experts must be a positive integer"),
        ("qwen3next", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size must be a positive"),
        ("qwen3next", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, .* qwen3next graph"),
        ("qwen3next", {"linear_value_head_dim": 32}, "linear_value_head_dim is 32, .* qwen3next graph"),
        ("qwen3next", {"layer_types": ["sliding_attention"] * 4}, "layer_types has 'sliding_attention'; .* qwen3next "),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, but there are only 4 experts"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts must be a positive integer"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_what_the_graphs_do_not_compute_is_refused_by_its_key(
    name: str, changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    keys = {key: value for key, value in {**config(RECIPES[name]), **changes}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    with pytest.raises((UnsupportedError, SourceError), match=f"^config.json: {words}"):
        plan(tmp_path, "tq2_0")


def moved(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def move(tensors: dict[str, Any]) -> None:
        tensors[new] = tensors.pop(old)

    return move


SHARED = "model.layers.0.mlp.shared_expert.up_proj.weight"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda t: t.pop(expert("qwen3moe", 1, 7, 0)), r"no tensor .*layers\.1\.mlp\.experts\.7\.gate_proj\.weight"),
        (moved(expert("qwen3moe", 0, 3, 1), expert("qwen3moe", 0, 8, 1)), r"no tensor .*experts\.3\.up_proj"),
        (lambda t: t.update({SHARED: t[expert("qwen3moe", 0, 0, 1)]}), "holds .*shared_expert"),
        (
            lambda t: t.update({FUSED.format(0, "down_proj"): np.zeros((8, 256, 256), np.float32)}),
            r"holds .*down_proj, ",
        ),
        (lambda t: t.update({expert("qwen3moe", 0, 2, 0): np.zeros((128, 256), np.float32)}), r"\(128, 256\), but"),
        (lambda t: t.pop("model.layers.0.mlp.gate.weight"), r"no tensor model\.layers\.0\.mlp\.gate\.weight"),
    ],
    ids=["an expert missing", "renumbered", "shared", "both ways", "shape", "no router"],
)
def test_missing_and_surplus_experts_are_refused(
    break_it: Callable[[dict[str, Floats]], Any], words: str, tmp_path: Path
) -> None:
    tensors = checkpoints.weights("qwen3moe")
    break_it(tensors)
    with pytest.raises(TritggufError, match=words):
        convert(write(tmp_path / "model", "qwen3moe", tensors), tmp_path / "out.gguf", "f16", check=False)


@pytest.mark.parametrize("shape", [(8, 256, 256), (7, 512, 256), (8, 512, 128), (4096, 256)])
def test_fused_experts_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = without_experts("qwen3moe", fused("qwen3moe"))
    tensors[FUSED.format(1, "gate_up_proj")] = np.zeros(shape, np.float32)
    with pytest.raises(
        SourceError, match=r"experts\.gate_up_proj has the shape .*, but config\.json calls for \(8, 512"
    ):
        convert(write(tmp_path / "model", "qwen3moe", tensors), tmp_path / "out.gguf", "f16", check=False)


def test_a_nan_in_one_expert_stops_with_its_name(tmp_path: Path) -> None:
    tensors = checkpoints.weights("qwen3moe")
    tensors[expert("qwen3moe", 1, 5, 2)][9, 4] = np.nan
    with pytest.raises(TensorError, match=r"experts\.5\.down_proj\.weight has 1 NaN .* row 9, column 4"):
        convert(write(tmp_path / "model", "qwen3moe", tensors), tmp_path / "out.gguf", "tq2_0", check=False)
