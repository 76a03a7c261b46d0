"""GPTQ, AutoRound and MLX checkpoints that are damaged or ask for what isn't read: one line with the reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import quantized_checkpoints
from tests.converter.checkpoint.packings.test_refusals import Broken, reshaped, without
from tests.packed_checkpoints import Stored, read_config, write_config, write_tensors
from tests.quantized_checkpoints import auto_round, gptq, mlx
from tritgguf.converter import convert
from tritgguf.converter.errors import SourceError, TensorError, UnsupportedError

Q = "model.layers.0.self_attn.q_proj"
O = "model.layers.0.self_attn.o_proj"  # noqa: E741 - as Q
DOWN = "model.layers.1.mlp.down_proj"


def retyped(name: str, dtype: str) -> Callable[[Stored], object]:
    """Name another dtype of the same size."""
    return lambda tensors: tensors.update({name: (dtype, *tensors[name][1:])})


def with_half(name: str, bits: int) -> Callable[[Stored], object]:
    def change(tensors: Stored) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, data[:100] + struct.pack("<H", bits) + data[102:])

    return change


def with_words(name: str, word: int, count: int | None = None) -> Callable[[Stored], object]:
    """Replace all words, or the first ones."""

    def change(tensors: Stored) -> None:
        dtype, shape, data = tensors[name]
        words = np.frombuffer(data, "<u4").copy()
        words[:count] = word
        tensors[name] = (dtype, shape, words.tobytes())

    return change


def beside(name: str, like: str) -> Callable[[Stored], object]:
    return lambda tensors: tensors.update({name: tensors[like]})


def act_order(tensors: Stored) -> None:
    dtype, shape, data = tensors[f"{Q}.g_idx"]
    order = np.random.default_rng(3).permutation(np.frombuffer(data, "<i4"))
    tensors[f"{Q}.g_idx"] = (dtype, shape, order.tobytes())


GPTQ = [
    Broken("gptq", without("0.self_attn.q_proj.scales"), SourceError, (f"{Q}.scales", "fetch")),
    Broken("gptq", without("0.self_attn.q_proj.qzeros"), SourceError, (f"{Q}.qzeros", "fetch")),
    Broken("gptq", without("0.self_attn.q_proj.qweight"), SourceError, (f"{Q}.qzeros", f"{Q}.qweight", "fetch")),
    Broken("gptq", lambda tensors: [without(s)(tensors) for s in (".qweight", ".qzeros", ".scales", ".g_idx")],
           SourceError, ("GPTQ", "no tensor is packed")),
    Broken("gptq", act_order, UnsupportedError, (f"{Q}.g_idx", "act-order", "desc_act")),
    Broken("gptq", retyped(f"{Q}.g_idx", "F32"), SourceError, (f"{Q}.g_idx", "F32", "I32")),
    Broken("gptq", retyped(f"{Q}.qweight", "F32"), SourceError, (f"{Q}.qweight", "F32", "I32")),
    Broken("gptq", retyped(f"{Q}.qzeros", "F32"), SourceError, (f"{Q}.qzeros", "F32", "I32")),
    Broken("gptq", retyped(f"{Q}.scales", "I16"), SourceError, (f"{Q}.scales", "I16", "F16")),
    Broken("gptq", reshaped(f"{Q}.qweight", (8, 512)), SourceError, (Q, "(8, 512)", "(2, 256)", "2 bits")),
    Broken("gptq", reshaped(f"{Q}.qweight", (4096,)), SourceError, (Q, "(4096,)")),
    Broken("gptq", reshaped(f"{Q}.scales", (256, 2)), SourceError, (Q, "(256, 2)")),
    Broken("gptq", reshaped(f"{Q}.qzeros", (4, 8)), SourceError, (Q, "(4, 8)")),
    Broken("gptq", with_half(f"{Q}.scales", 0x7C00), TensorError, (f"{Q}.scales", "NaN or Inf", "fetch")),
    Broken("gptq", beside(f"{Q}.weight", f"{Q}.scales"), SourceError, (f"{Q}.weight", f"{Q}.qweight", "damaged")),
    Broken("gptq", with_words(f"{Q}.qzeros", 0xAAAAAAAA), SourceError, (f"{Q}.qzeros", "holds 2", "sym", "checkpoint")),
    Broken("gptq", gptq(group_size=64), SourceError, (Q, "groups of 64")),
    Broken("gptq", gptq(bits=4), SourceError, (Q, "4 bits")),
    Broken("gptq", gptq(bits=5), UnsupportedError, ("bits", "is 5", "2, 3, 4, 8")),
    Broken("gptq", gptq(bits="2"), SourceError, ("bits", "'2'")),
    Broken("gptq", gptq(bits=None), SourceError, ("bits", "None")),
    Broken("gptq", gptq(group_size=0), SourceError, (Q, "groups of 0")),
    Broken("gptq", gptq(group_size=-7), SourceError, ("group_size", "-7")),
    Broken("gptq", gptq(sym="true"), SourceError, ("sym", "true or false", "'true'")),
    Broken("gptq", gptq(format="gptq_p", checkpoint_format="gptq_p"), UnsupportedError, ("'gptq_p'", "gptq_v2")),
    Broken("gptq", gptq(format="gptq_v2"), SourceError, ("format", "differ", "'gptq'")),
    Broken("gptq", gptq(format=["gptq"]), SourceError, ("format", "a text")),
    Broken("gptq", gptq(format="marlin", checkpoint_format=None), UnsupportedError, ("'marlin'",)),
    Broken("gptq", gptq(is_marlin_format=True), UnsupportedError, ("is_marlin_format",)),
    Broken("gptq", gptq(pack_dtype="int16"), UnsupportedError, ("pack_dtype", "'int16'", "int32")),
    Broken("gptq", gptq(adapter={"name": "lora"}), UnsupportedError, ("adapter", "lora")),
    Broken("gptq", gptq(rotation="hadamard"), UnsupportedError, ("rotation", "hadamard")),
    Broken("gptq", gptq(dynamic=[1]), SourceError, ("dynamic", "an object")),
    Broken("gptq", gptq(dynamic={".*": {"bits": 1}}), UnsupportedError, ("bits", "is 1")),
    Broken("gptq", gptq(dynamic={".*": {"format": "gptq_v2"}}), UnsupportedError, ("dynamic", "format")),
    Broken("gptq", {"quantization_config": None}, SourceError, ("quantize_config.json",)),
    Broken("gptq", {"quantization_config": {"quant_method": "awq", "bits": 4}}, UnsupportedError, ("'awq'",)),
    Broken("gptq", {"intermediate_size": 500}, SourceError, ("(512, 256)", "(500, 256)")),
]  # fmt: skip
AUTO_ROUND = [
    Broken("auto-round", without("0.self_attn.q_proj.scales"), SourceError, (f"{Q}.scales", "fetch")),
    Broken("auto-round", with_half(f"{Q}.scales", 0x7E00), TensorError, (f"{Q}.scales", "NaN or Inf")),
    Broken("auto-round", with_words(f"{Q}.qzeros", 0xAAAAAAAA), SourceError, (f"{Q}.qzeros", "packing_format")),
    Broken(
        "auto-round", auto_round(packing_format="auto_round:auto_awq"), UnsupportedError, ("'auto_round:auto_awq'",)
    ),
    Broken("auto-round", auto_round(packing_format="auto_round:fp8_static"), UnsupportedError, ("fp8_static",)),
    Broken("auto-round", auto_round(packing_format=3), SourceError, ("packing_format", "a text")),
    Broken("auto-round", auto_round(packing_format=None, sym=False), UnsupportedError, ("packing_format", "missing")),
    Broken("auto-round", auto_round(rotation_config={"kind": "x"}), UnsupportedError, ("rotation_config", "rotated")),
    Broken("auto-round", auto_round(data_type="mx_fp"), UnsupportedError, ("data_type", "'mx_fp'")),
    Broken("auto-round", auto_round(act_bits=8), UnsupportedError, ("act_bits", "8", "activations")),
    Broken("auto-round", auto_round(super_bits=6), UnsupportedError, ("super_bits",)),
    Broken("auto-round", auto_round(extra_config={DOWN: {"act_bits": 4}}), UnsupportedError, ("act_bits", "4")),
    Broken("auto-round", auto_round(), SourceError, (DOWN, "2 bits")),  # without its extra_config
]
MLX = [
    Broken("mlx-bonsai", without("0.self_attn.q_proj.scales"), SourceError, (f"{Q}.scales", "fetch")),
    Broken("mlx-bonsai", without("0.self_attn.q_proj.biases"), SourceError, (f"{Q}.biases", "fetch")),
    Broken("mlx-bonsai", without("0.self_attn.q_proj.weight"), SourceError, (f"no {Q}.weight", "fetch")),
    Broken("mlx-bonsai", retyped(f"{Q}.scales", "I16"), SourceError, (f"{Q}.scales", "I16")),
    Broken("mlx-bonsai", retyped(f"{Q}.weight", "I32"), SourceError, (f"{Q}.weight is I32", "U32")),
    Broken("mlx-bonsai", reshaped(f"{Q}.weight", (128, 32)), SourceError, (Q, "(128, 32)", "2 bits")),
    Broken("mlx-bonsai", reshaped(f"{Q}.biases", (2, 256)), SourceError, (Q, "(2, 256)")),
    Broken("mlx-bonsai", with_half(f"{Q}.biases", 0x7C00), TensorError, (f"{Q}.biases", "NaN or Inf")),
    Broken("mlx-bonsai", mlx(group_size=64), SourceError, ("embed_tokens", "groups of 64")),
    Broken("mlx-bonsai", mlx(bits=4), SourceError, ("embed_tokens", "4 bits")),
    Broken("mlx-bonsai", mlx(bits=7), UnsupportedError, ("bits", "7")),
    Broken("mlx-bonsai", mlx(bits=True), SourceError, ("bits", "True")),
    Broken("mlx-bonsai", mlx(mode="mxfp4"), UnsupportedError, ("mode", "'mxfp4'", "affine")),
    Broken("mlx-bonsai", mlx(**{Q: False}), SourceError, (Q, "false", "packed")),
    Broken("mlx-bonsai", mlx(**{Q: {"bits": 3}}), SourceError, (Q, "3 bits")),
    Broken("mlx-bonsai", {"quantization": [2], "quantization_config": None}, SourceError, ("quantization", "object")),
]


@pytest.mark.parametrize(
    "broken", [*GPTQ, *AUTO_ROUND, *MLX], ids=lambda broken: f"{broken.name}: {' '.join(broken.words)}"
)
def test_a_broken_checkpoint_is_refused_with_its_reason(broken: Broken, tmp_path: Path) -> None:
    folder = quantized_checkpoints.build(broken.name, tmp_path / "model")
    if isinstance(broken.change, dict):
        write_config(folder, {**read_config(folder), **broken.change})
    else:
        tensors = quantized_checkpoints.stored(broken.name)
        broken.change(tensors)
        write_tensors(folder, tensors)
    with pytest.raises(broken.error) as refused:
        convert(folder, tmp_path / "out.gguf", check=False)
    message = str(refused.value)
    assert all(word in message for word in broken.words), message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == [folder]


def test_columns_in_order_need_no_g_idx(tmp_path: Path) -> None:
    folder = quantized_checkpoints.build("gptq", tmp_path / "model")
    tensors = quantized_checkpoints.stored("gptq")
    without(".g_idx")(tensors)
    write_tensors(folder, tensors)
    convert(folder, tmp_path / "out.gguf", check=False)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gptq", gptq(desc_act=True)),  # g_idx tells that no column moved
        ("gptq", gptq(static_groups=True, true_sequential=True, damp_percent=0.01, model_seqlen=4096)),
        (
            "auto-round-plain",
            auto_round(packing_format="auto_round", enable_quanted_input=True, autoround_version="0.9"),
        ),
        ("mlx-bonsai", {"quantization_config": None}),
        ("mlx-bonsai", {"quantization": None}),
        ("mlx-bonsai", auto_round(packing_format="mlx", group_size=128)),
    ],
)
def test_other_keys_do_no_harm(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = quantized_checkpoints.build(name, tmp_path / "model")
    write_config(folder, {**read_config(folder), **changes})
    convert(folder, tmp_path / "out.gguf", check=False)
