"""Packed checkpoints that contradict themselves or can't be computed: one line with the reason, and no file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import gguf_weights, packed_checkpoints
from tests.packed_checkpoints import Stored, read_config, write_config, write_tensors
from tritgguf.converter import convert
from tritgguf.converter.errors import SourceError, TensorError, TritggufError, UnsupportedError

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@dataclass(frozen=True)
class Broken:
    """One checkpoint with a change to its tensors or config.json, and what must be said of it."""

    name: str
    change: Callable[[Stored], object] | dict[str, Any]
    error: type[TritggufError]
    words: tuple[str, ...]


def without(suffix: str) -> Callable[[Stored], object]:
    def change(tensors: Stored) -> None:
        for name in [name for name in tensors if name.endswith(suffix)]:
            del tensors[name]

    return change


def with_byte(name: str, value: int) -> Callable[[Stored], object]:
    def change(tensors: Stored) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, data[:1000] + bytes([value]) + data[1001:])

    return change


def with_floats(name: str, *values: float, shape: tuple[int, ...] | None = None) -> Callable[[Stored], object]:
    data = struct.pack(f"<{len(values)}f", *values)
    return lambda tensors: tensors.update({name: ("F32", (len(values),) if shape is None else shape, data)})


def with_first_float(name: str, value: float) -> Callable[[Stored], object]:
    def change(tensors: Stored) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, struct.pack("<f", value) + data[4:])

    return change


def reshaped(name: str, shape: tuple[int, ...]) -> Callable[[Stored], object]:
    return lambda tensors: tensors.update({name: (tensors[name][0], shape, tensors[name][2])})


def bitnet(**keys: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitnet", **keys}}


BITNET = [
    Broken("2b4t", with_byte(DOWN, 0b01_11_01_01), TensorError, (DOWN, "code 3", "damaged")),
    Broken("falcon3", without("0.self_attn.q_proj.weight_scale"), SourceError, (f"{Q}_scale", "fetch")),
    Broken("falcon3", without("weight_scale"), SourceError, (Q, "neither", f"{Q}_scale", "fetch")),
    Broken("2b4t", with_floats(f"{Q}_scale", 1.0, 1.0, 1.0), SourceError, (f"{Q}_scale", "3 values", "256 rows")),
    Broken("2b4t", with_floats(f"{Q}_scale", *[1.0] * 64), SourceError, (f"{Q}_scale", "64 values", "256 rows")),
    Broken("2b4t", with_floats(f"{Q}_scale", shape=(0,)), SourceError, (f"{Q}_scale", "0 values")),
    Broken("2b4t", with_floats(f"{Q}_scale", 0.0), TensorError, (f"{Q}_scale", "above zero")),
    Broken("2b4t", with_floats(f"{Q}_scale", -0.5), TensorError, (f"{Q}_scale", "-0.5", "above zero")),
    Broken("2b4t", with_floats(f"{Q}_scale", float("nan")), TensorError, (f"{Q}_scale", "NaN")),
    Broken("2b4t", reshaped(Q, (4, 16, 256)), SourceError, (Q, "(4, 16, 256)")),
    Broken("2b4t", reshaped(Q, (32, 512)), SourceError, (Q, "(128, 512)", "(256, 256)")),
    Broken("2b4t", bitnet(linear_class="tritlinear"), UnsupportedError, ("'tritlinear'", "autobitlinear or bitlinear")),
    Broken("2b4t", {"quantization_config": None}, SourceError, ("no quantization_config", "multiplied", "divided")),
    Broken("2b4t", {"quantization_config": {"quant_method": "modelopt"}}, UnsupportedError, ("modelopt",)),
    Broken("2b4t", {"quantization_config": "bitnet"}, SourceError, ("must be an object",)),
    Broken("2b4t", with_floats(f"{DOWN}.scales", 1.0), SourceError, ("bitnet packing", "base-3 packing", "damaged")),
    # use_rms_norm, wherever it can stand
    Broken("falcon3", bitnet(use_rms_norm=True), UnsupportedError, ("use_rms_norm", "no graph")),
    Broken("llama-online", bitnet(use_rms_norm=True, quantization_mode="online"), UnsupportedError, ("use_rms_norm",)),
    Broken("falcon-e-bfloat16", bitnet(use_rms_norm=True), UnsupportedError, ("use_rms_norm",)),
]
LATENT = [
    Broken("llama-online", bitnet(quantization_mode="offline"), UnsupportedError, ("neither packed nor ternary",)),
    Broken(
        "llama-online",
        bitnet(quantization_mode="online", modules_to_not_convert="lm_head"),
        SourceError,
        ("modules_to_not_convert", "'lm_head'"),
    ),
    Broken(
        "llama-online",
        bitnet(quantization_mode="online", modules_to_not_convert=["("]),
        SourceError,
        ("modules_to_not_convert", "pattern"),
    ),
    *(  # searching for these takes exponential time
        Broken(
            "llama-online",
            bitnet(quantization_mode="online", modules_to_not_convert=[pattern]),
            SourceError,
            ("modules_to_not_convert", "for ever"),
        )
        for pattern in (
            *(r"(\w+)+!", r"(?:\w*){99}!", r".*.*.*.*.*!"),
            *("a?" * 30 + "a" * 30, "(.|.)" * 30 + "!", "a" * 999),
        )
    ),
    Broken("1bitllm", with_first_float(DOWN, float("nan")), TensorError, (DOWN, "NaN")),
]
BASE3 = [
    Broken("14b-seed", with_byte(DOWN, 81), TensorError, (DOWN, "byte 81", "80")),
    Broken("14b-seed", without("0.self_attn.q_proj.weight.scales"), SourceError, (f"{Q}.scales", "fetch")),
    Broken("14b-seed", without(".scales"), SourceError, ("model.embed_tokens.weight.scales", "neither", "fetch")),
    Broken("14b-seed", reshaped(f"{Q}.scales", (128, 8)), SourceError, (Q, "(256, 64)", "(128, 8)")),
    Broken("14b-seed", reshaped(f"{Q}.scales", (1024,)), SourceError, (Q, "(1024,)")),
    Broken("14b-seed", with_floats(f"{Q}.scales", *[1.0] * 768, shape=(256, 3)), SourceError, (Q, "(256, 3)")),
    Broken("14b-seed", with_floats(f"{Q}.scales", shape=(256, 0)), SourceError, (Q, "(256, 0)")),
    Broken("14b-seed", with_first_float(f"{Q}.scales", -0.25), TensorError, (f"{Q}.scales", "-0.25", "zero or more")),
    Broken("14b-seed", with_first_float(f"{Q}.scales", float("inf")), TensorError, (f"{Q}.scales", "Inf")),
    Broken("14b-seed", reshaped(Q, (2, 128, 64)), SourceError, (Q, "(2, 128, 64)")),
    Broken("14b-seed", {"intermediate_size": 500}, SourceError, ("(512, 256)", "(500, 256)")),
    # Fewer columns than the last group begins with are no padding.
    Broken("14b-padded", {"intermediate_size": 448}, SourceError, ("(480, 320)", "(448, 288)")),
    Broken(
        "14b-newer",
        {"quantization_config": {"quant_method": "bitnet_158", "group_size": 128, "packing": "base3_columns"}},
        SourceError,
        ("group_size 128", "64 columns"),
    ),
    Broken(
        "14b-newer",
        {"quantization_config": {"quant_method": "bitnet_158", "packing": "base3_rows"}},
        SourceError,
        ("base3_rows", "base3_columns"),
    ),
    Broken(
        "14b-newer", {"quantization_config": {"quant_method": "modelopt"}}, SourceError, ("modelopt", "base-3 packed")
    ),
]
ARCHITECTURES = [
    Broken("bitcpm", {"scale_emb": None}, SourceError, ("scale_emb", "positive number", "None")),
    Broken("bitcpm", {"scale_depth": "1.4"}, SourceError, ("scale_depth", "'1.4'")),
    Broken("bitcpm", {"dim_model_base": 0}, SourceError, ("dim_model_base", "found 0")),
    Broken("bitcpm", {"sparse_config": {"dense_len": 8192}}, UnsupportedError, ("sparse_config", "null")),
    Broken("bitcpm", {"hidden_act": "gelu"}, UnsupportedError, ("hidden_act", "gelu")),
    Broken("2b4t", {"hidden_act": "silu"}, UnsupportedError, ("hidden_act", "silu", "relu2")),
    Broken("1bitllm", {"hidden_act": "relu2"}, UnsupportedError, ("hidden_act", "relu2", "silu")),
    Broken(
        "2b4t", {"head_dim": 128}, UnsupportedError, ("num_attention_heads 4 times head_dim 128", "hidden_size 256")
    ),
    Broken("2b4t", {"tie_word_embeddings": False}, UnsupportedError, ("tie_word_embeddings", "no output layer")),
    Broken("1bitllm", {"tie_word_embeddings": False}, UnsupportedError, ("tie_word_embeddings", "no output layer")),
    Broken("1bitllm", without("inner_attn_ln.weight"), SourceError, ("0.self_attn.inner_attn_ln.weight",)),
]


@pytest.mark.parametrize(
    "broken", [*BITNET, *LATENT, *BASE3, *ARCHITECTURES], ids=lambda broken: f"{broken.name}: {broken.words[-1]}"
)
def test_a_broken_checkpoint_is_refused_with_its_reason(broken: Broken, tmp_path: Path) -> None:
    folder = packed_checkpoints.build(broken.name, tmp_path / "model")
    if isinstance(broken.change, dict):
        write_config(folder, {**read_config(folder), **broken.change})
    else:
        tensors = packed_checkpoints.stored(broken.name)
        broken.change(tensors)
        write_tensors(folder, tensors)
    with pytest.raises(broken.error) as refused:
        convert(folder, tmp_path / "out.gguf", check=False)
    message = str(refused.value)
    assert all(word in message for word in broken.words), message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == [folder]


def test_a_scale_of_zero_is_fine_where_it_is_one_of_many(tmp_path: Path) -> None:
    """A group of zeros has the mean 0 under the seed's own rule."""
    folder = packed_checkpoints.build("14b-seed", tmp_path / "model")
    tensors = packed_checkpoints.stored("14b-seed")
    with_first_float(f"{Q}.scales", 0.0)(tensors)
    write_tensors(folder, tensors)
    convert(folder, tmp_path / "out.gguf", type="q2_0", check=False)


def test_modules_to_not_convert_are_named_as_transformers_names_them(tmp_path: Path) -> None:
    """A full name, its end, or a regular expression for its start up to a dot; never just any part of it."""
    folder = packed_checkpoints.build("llama-online", tmp_path / "model")
    kept = [
        "lm_head",
        "model.layers.1.mlp",
        r"model.layers.0.self_attn.[qk]_proj",
        "0.mlp.up_proj",
        "mlp.gate",
        "0.mlp.d",
    ]
    config = read_config(folder)
    config["quantization_config"]["modules_to_not_convert"] = kept
    write_config(folder, config)
    convert(folder, tmp_path / "out.gguf", check=False)
    types = gguf_weights.types(tmp_path / "out.gguf")
    floats = {name for name, type_name in types.items() if type_name in ("f16", "bf16") and name.startswith("blk.")}
    first = {"attn_q", "attn_k", "ffn_up"}
    expected = {f"blk.0.{part}.weight" for part in first} | {
        f"blk.1.ffn_{part}.weight" for part in ("gate", "up", "down")
    }
    assert floats == expected
    stored = packed_checkpoints.stored("llama-online")[DOWN]
    master = (np.frombuffer(stored[2], "<u2").astype(np.uint32) << 16).view(np.float32).reshape(stored[1])
    found = gguf_weights.read(tmp_path / "out.gguf")[DOWN]
    assert np.abs(found - master).max() <= 2.0**-11 * np.abs(master).max()
