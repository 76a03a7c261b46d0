"""Checkpoints of codes and scales that contradict themselves or can't be computed: one line, and no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import gguf_weights, scaled_checkpoints
from tests.packed_checkpoints import Stored, read_config, write_config, write_tensors
from tritgguf.converter import convert
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.checkpoint.unread_methods import WAYS_OUT
from tritgguf.converter.errors import SourceError, TensorError, TritggufError, UnsupportedError

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


@dataclass(frozen=True)
class Broken:
    """One checkpoint with a change to its tensors or its quantization_config, and what must be said of it."""

    name: str
    change: Callable[[Stored], object] | dict[str, Any]
    error: type[TritggufError]
    words: tuple[str, ...]


def without(name: str) -> Callable[[Stored], object]:
    return lambda tensors: tensors.pop(name)


def reshaped(name: str, *shape: int) -> Callable[[Stored], object]:
    return lambda tensors: tensors.update({name: (tensors[name][0], shape, tensors[name][2])})


def holding(name: str, values: np.ndarray, dtype: str) -> Callable[[Stored], object]:
    return lambda tensors: tensors.update({name: (dtype, values.shape, values.tobytes())})


def with_bytes(name: str, data: bytes) -> Callable[[Stored], object]:
    def change(tensors: Stored) -> None:
        dtype, shape, found = tensors[name]
        tensors[name] = (dtype, shape, data + found[len(data) :])

    return change


def groups(**weights: Any) -> dict[str, Any]:
    """Return the one group of ct-2bit with other keys in its weights."""
    known = scaled_checkpoints.QUANTIZED["ct-2bit"].keys["config_groups"]["group_0"]["weights"]
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**known, **weights}}}}


def targets(*names: str) -> dict[str, Any]:
    (group,) = groups()["config_groups"].values()
    return {"config_groups": {"group_0": {**group, "targets": list(names)}}}


PACKED = "weight_packed"
MANY_GROUPS = {str(number): group for group in groups()["config_groups"].values() for number in range(65)}
NAN_BF16, NAN_E4M3 = bytes([0xC0, 0x7F]), bytes([0x7F])
COMPRESSED = [
    Broken("ct-2bit", without(f"{Q}.weight_scale"), SourceError, (f"{Q}.weight_scale", "fetch")),
    Broken("ct-2bit", without(f"{Q}.weight_shape"), SourceError, (f"{Q}.weight_shape", "fetch")),
    Broken("ct-2bit", without(f"{Q}.{PACKED}"), SourceError, (f"{Q}.weight", "config.json calls for")),
    Broken("ct-2bit", reshaped(f"{Q}.{PACKED}", 128, 32), SourceError, (f"{Q}.{PACKED}", "(128, 32)", "(256, 256)")),
    Broken("ct-2bit", reshaped(f"{Q}.{PACKED}", 16, 16, 16), SourceError, (f"{Q}.{PACKED}", "rows and columns")),
    Broken("ct-2bit", reshaped(f"{Q}.weight_scale", 2, 256), SourceError, ("weight_scale", "(2, 256)", "(256, 2)")),
    Broken("ct-2bit", with_bytes(f"{Q}.weight_scale", NAN_BF16), TensorError, (f"{Q}.weight_scale", "NaN")),
    Broken("ct-2bit", holding(f"{Q}.weight_scale", np.ones((256, 2), "<i4"), "I32"), SourceError, ("I32", "scales")),
    Broken("ct-2bit", holding(f"{Q}.weight_shape", np.array([256]), "I64"), SourceError, ("[256]", "rows")),
    Broken("ct-2bit", holding(f"{Q}.weight_shape", np.array([-1, 1]), "I64"), SourceError, ("[-1, 1]", "rows")),
    Broken("ct-2bit", holding(f"{Q}.weight_shape", np.array([2.0]), "F64"), SourceError, ("F64", "I64")),
    Broken("ct-2bit", holding(f"{Q}.{PACKED}", np.zeros((256, 16), "<u4"), "U32"), SourceError, ("U32", "I32")),
    Broken(
        "ct-2bit",
        holding(f"{Q}.weight_g_idx", np.arange(256, dtype="<i4")[::-1] // 128, "I32"),
        UnsupportedError,
        ("weight_g_idx", "actorder", "neighbours"),
    ),
    Broken("ct-2bit", groups(actorder="group"), SourceError, (f"{Q}.weight_g_idx", "fetch")),
    Broken("ct-2bit", {"moe_sparsity_config": {"method": "prune"}}, UnsupportedError, ("moe_sparsity", "experts")),
    Broken("ct-2bit", {"format": "marlin-24"}, UnsupportedError, ("'marlin-24'", "pack-quantized")),
    Broken("ct-2bit", {"format": "nvfp4-pack-quantized"}, UnsupportedError, ("nvfp4", "expected one of")),
    Broken("ct-2bit", {"format": "dense"}, UnsupportedError, ("'dense'", "expected one of")),
    Broken("ct-2bit", {"format": None}, UnsupportedError, ("format None", "expected one of")),
    Broken("ct-2bit", {"format": "int-quantized"}, SourceError, ("int-quantized", f"{Q}.{PACKED}")),
    Broken("ct-int8", {"format": "pack-quantized"}, SourceError, ("pack-quantized", f"{Q}.weight")),
    Broken("ct-int8", groups(num_bits=8, type="float", group_size=None, strategy="channel"), SourceError, ("I8", "F8")),
    Broken("ct-2bit", {"config_groups": {}}, SourceError, ("config_groups", "0 groups", "1 to 64")),
    Broken("ct-2bit", {"config_groups": MANY_GROUPS}, SourceError, ("config_groups", "65 groups", "1 to 64")),
    Broken("ct-2bit", {"config_groups": {"W2A16": ["Linear"]}}, SourceError, ("W2A16", "an object")),
    Broken("ct-2bit", groups(num_bits=3), UnsupportedError, ("num_bits 3", "2, 4 or 8")),
    Broken("ct-2bit", groups(num_bits="2"), SourceError, ("num_bits", "'2'")),
    Broken("ct-2bit", groups(num_bits=4), SourceError, (f"{Q}.{PACKED}", "4 bits", "damaged")),
    Broken("ct-2bit", groups(type="float"), UnsupportedError, ("'float'", "pack-quantized")),
    Broken("ct-2bit", groups(group_size=96), SourceError, ("256 weights", "group_size 96")),
    Broken("ct-2bit", groups(group_size=64), SourceError, ("weight_scale", "(256, 4)")),
    Broken("ct-2bit", groups(strategy="tensor_group"), UnsupportedError, ("'tensor_group'", "channel")),
    Broken("ct-2bit", groups(strategy="channel"), UnsupportedError, ("'channel'", "128")),
    Broken("ct-2bit", groups(strategy="block", group_size=None), SourceError, ("block_structure", "2 numbers")),
    Broken("ct-2bit", groups(symmetric=False), SourceError, (f"{Q}.weight_zero_point", "fetch")),
    Broken("ct-2bit", groups(symmetric="yes"), SourceError, ("symmetric", "true or false")),
    Broken("ct-2bit", {"ignore": [r"re:.*q_proj"]}, SourceError, ("ignore", Q, "is packed")),
    Broken("ct-2bit", {"ignore": [r"re:(\\w+)+!"]}, SourceError, ("ignore", "for ever")),
    Broken("ct-2bit", {"ignore": ["re:["]}, SourceError, ("ignore", "invalid pattern")),
    Broken("ct-2bit", {"ignore": ["re:x"] * 1001}, SourceError, ("ignore", "1001", "at most 1000")),
    Broken("ct-2bit", {"ignore": ["re:.*.*.*x"] * 999}, SourceError, ("ignore", "999 patterns", "for ever", Q)),
    Broken("ct-2bit", {"ignore": "lm_head"}, SourceError, ("ignore", "a list of texts")),
    Broken("ct-2bit", targets("re:.*mlp.*"), SourceError, (Q, "isn't a target")),
    Broken("ct-2bit", targets(r"re:.*.*.*.*x"), SourceError, ("config_groups.group_0.targets", "for ever")),
    Broken(
        "ct-2bit",
        {"config_groups": {**groups()["config_groups"], "b": groups(num_bits=4)["config_groups"]["group_0"]}},
        UnsupportedError,
        (Q, "group_0", "config_groups.b", "differ"),
    ),
    Broken(
        "ct-2bit",
        {"transform_config": {"config_groups": {"u": {"type": "hadamard", "apply": []}}}},
        UnsupportedError,
        ("transform_config", "rotates"),
    ),
    Broken("ct-2bit", {"sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedError, ("sparse-24", "sparse")),
    Broken("ct-mixed", without(f"{DOWN}.weight_zero_point"), SourceError, (f"{DOWN}.weight_zero_point", "fetch")),
    Broken("ct-mixed", reshaped(f"{DOWN}.weight_zero_point", 8, 32), SourceError, ("(8, 32)", "(32, 8)")),
    Broken("ct-fp8", with_bytes(f"{Q}.weight", NAN_E4M3), TensorError, (f"{Q}.weight", "NaN", "row 0, column 0")),
    Broken("ct-fp8", reshaped(f"{Q}.weight_scale", 128, 2), SourceError, (f"{Q}.weight_scale", "(256, 1)")),
]
OTHERS = [
    Broken("fp8-blocks", without(f"{Q}.weight_scale_inv"), SourceError, (f"{Q}.weight_scale_inv", "0 scales")),
    Broken(
        "fp8-blocks",
        holding(f"{Q}.weight_scale", np.ones((2, 2), "<f4"), "F32"),
        SourceError,
        (f"{Q}.weight", "2 scales", "fetch"),
    ),
    Broken("fp8-blocks", with_bytes(f"{Q}.weight", NAN_E4M3), TensorError, (f"{Q}.weight", "NaN")),
    Broken("fp8-blocks", reshaped(f"{DOWN}.weight_scale_inv", 4, 2), SourceError, ("(4, 2)", "(2, 4)")),
    Broken("fp8-blocks", {"weight_block_size": [64, 128]}, SourceError, ("weight_scale_inv", "64 × 128")),
    Broken("fp8-blocks", reshaped(f"{Q}.weight_scale_inv", 4), SourceError, (f"{Q}.weight_scale_inv", "(2, 2)")),
    Broken("fp8-blocks", {"weight_block_size": [128]}, SourceError, ("weight_block_size", "2 numbers")),
    Broken("fp8-blocks", {"weight_block_size": [0.5, 128]}, SourceError, ("weight_block_size", "two positive")),
    Broken(
        "fp8-blocks",
        holding(f"{Q}.weight_scale_inv", np.full((2, 2), 3e38, "<f4"), "F32"),
        TensorError,
        (f"{Q}.weight", "beyond F32's range"),
    ),
    Broken("humming", without(f"{Q}.weight_scale"), SourceError, (f"{Q}.weight_scale", "fetch")),
    Broken("humming", {"b_dtype": "uint3"}, UnsupportedError, ("b_dtype", "'uint3'", "uint2")),
    Broken("humming", {"b_dtype": None}, UnsupportedError, ("b_dtype", "None")),
    Broken("humming", {"b_dtype": "uint4"}, SourceError, (f"{Q}.weight_scale", "(256, 1)")),
    Broken("humming", {"has_zero_point": True}, UnsupportedError, ("has_zero_point", "zero points")),
    Broken("humming", {"hadamard_block_size": 128}, UnsupportedError, ("hadamard_block_size", "Hadamard basis")),
    Broken("humming", {"weight_scale_type": "block"}, UnsupportedError, ("weight_scale_type", "'block'", "group")),
    Broken("humming", {"weight_scale_group_size": 96}, SourceError, ("256 weights", "96")),
    Broken("humming", {"dynamic": {"re:.*": {}}}, UnsupportedError, ("dynamic", "one setting")),
    Broken(
        "humming",
        holding(f"{Q}.zero_point", np.ones((256, 2), "<f4"), "F32"),
        UnsupportedError,
        (f"{Q}.weight", "zero points"),
    ),
    Broken("humming", reshaped(f"{Q}.weight", 16, 16, 16), SourceError, (f"{Q}.weight", "(16, 16, 16)")),
]


@pytest.mark.parametrize("broken", [*COMPRESSED, *OTHERS], ids=lambda broken: f"{broken.name}: {broken.words}")
def test_a_broken_checkpoint_is_refused_with_its_reason(broken: Broken, tmp_path: Path) -> None:
    folder = scaled_checkpoints.build(broken.name, tmp_path / "model")
    if isinstance(broken.change, dict):
        config = read_config(folder)
        config["quantization_config"].update(broken.change)
        write_config(folder, config)
    else:
        tensors = scaled_checkpoints.stored(broken.name)
        broken.change(tensors)
        write_tensors(folder, tensors)
    with pytest.raises(broken.error) as refused:
        convert(folder, tmp_path / "out.gguf", check=False)
    message = str(refused.value)
    assert all(word in message for word in broken.words), message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["ct-2bit", "fp8-blocks", "humming"])
def test_a_checkpoint_without_packed_weights_is_refused(name: str, tmp_path: Path) -> None:
    folder = scaled_checkpoints.build(name, tmp_path / "model")
    write_tensors(folder, {"lm_head.weight": scaled_checkpoints.stored(name)["lm_head.weight"]})
    with pytest.raises(SourceError, match="fetch"):
        convert(folder, tmp_path / "out.gguf", check=False)


@pytest.mark.parametrize("method", list(WAYS_OUT))
def test_a_method_that_is_not_read_is_refused_by_name(method: str, tmp_path: Path) -> None:
    folder = scaled_checkpoints.build("ct-2bit", tmp_path / "model")
    config = read_config(folder)
    config["quantization_config"] = {"quant_method": method}
    write_config(folder, config)
    with pytest.raises(UnsupportedError, match=f"quant_method '{method}' isn't read: .*(convert|give) "):
        convert(folder, tmp_path / "out.gguf", check=False)


def test_activations_are_not_rounded_and_their_scales_are_left_out(tmp_path: Path) -> None:
    folder = scaled_checkpoints.build("ct-int8", tmp_path / "model")
    tensors = scaled_checkpoints.stored("ct-int8")
    convert(folder, tmp_path / "out.gguf", check=False)
    scale = ("F32", (1,), np.ones(1, "<f4").tobytes())
    tensors |= {f"{Q}.input_scale": scale, f"{DOWN}.output_scale": scale}
    write_tensors(folder, tensors)
    convert(folder, tmp_path / "with.gguf", check=False)
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()
    write_tensors(folder, {**tensors, "model.layers.0.self_attn.k_scale": scale})
    with pytest.raises(UnsupportedError, match="k_scale"):
        convert(folder, tmp_path / "cache.gguf", check=False)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    write_config(folder, config)
    convert(folder, tmp_path / "cache.gguf", check=False)


@pytest.mark.parametrize("order", [np.arange(256) // 128, np.full(256, -1)])
def test_an_order_that_changes_nothing_is_read(order: np.ndarray, tmp_path: Path) -> None:
    folder = scaled_checkpoints.build("ct-2bit", tmp_path / "model")
    tensors = scaled_checkpoints.stored("ct-2bit")
    holding(f"{Q}.weight_g_idx", order.astype("<i4"), "I32")(tensors)
    write_tensors(folder, tensors)
    convert(folder, tmp_path / "out.gguf", check=False)


def test_blocks_are_those_of_transformers_where_config_json_is_silent(tmp_path: Path) -> None:
    folder = scaled_checkpoints.build("fp8-blocks", tmp_path / "model")
    convert(folder, tmp_path / "said.gguf", check=False)
    config = read_config(folder)
    del config["quantization_config"]["weight_block_size"]
    write_config(folder, config)
    convert(folder, tmp_path / "silent.gguf", check=False)
    assert (tmp_path / "silent.gguf").read_bytes() == (tmp_path / "said.gguf").read_bytes()


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (256,), (256, 1)])
def test_a_scale_per_tensor_or_row_is_read_under_both_names(
    suffix: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    scales = np.arange(1, 257, dtype="<f4")[: 256 if 256 in shape else 1].reshape(shape)
    codes = np.arange(256 * 4, dtype=np.uint8).reshape(256, 4) & 0x7E
    write_tensors(
        tmp_path, {f"{Q}.weight": ("F8_E4M3", codes.shape, codes.tobytes())} | {f"{Q}.{suffix}": entry(scales)}
    )
    found = read_packing({"quantization_config": {"quant_method": "fp8"}}, read_tensors(tmp_path), linear=())[1]
    expected = scaled_checkpoints.e4m3(codes) * scales.reshape(-1, 1)
    np.testing.assert_array_equal(found[f"{Q}.weight"].read(slice(None)), expected)


def test_8_bit_floats_without_scales_and_without_a_method_are_plain_floats(tmp_path: Path) -> None:
    folder = scaled_checkpoints.build("fp8-blocks", tmp_path / "model")
    write_config(folder, {**read_config(folder), "quantization_config": None})
    with pytest.raises(UnsupportedError, match=r"weight_scale_inv, which llama\.cpp's qwen3 graph doesn't use"):
        convert(folder, tmp_path / "out.gguf", check=False)
    tensors = scaled_checkpoints.stored("fp8-blocks")
    write_tensors(folder, {name: tensor for name, tensor in tensors.items() if not name.endswith("scale_inv")})
    planned = convert(folder, tmp_path / "out.gguf", check=False).plan
    linear = [tensor for tensor in planned.tensors if tensor.spec.role == "linear"]
    assert all(tensor.exact and tensor.codec.name == "f16" for tensor in linear)
    codes = np.frombuffer(tensors[f"{Q}.weight"][2], np.uint8).reshape(tensors[f"{Q}.weight"][1])
    found = gguf_weights.read(tmp_path / "out.gguf")[f"{Q}.weight"]
    np.testing.assert_array_equal(found, scaled_checkpoints.e4m3(codes))


def entry(values: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", values.shape, values.tobytes()
