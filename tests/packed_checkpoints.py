"""Seeded Hugging Face checkpoints of two layers in every way in which ternary weights lie on disk.

`build(name, folder)` writes one, `weights(name)` says what its model computes with. Both start from trits and scales,
following the descriptions of the formats (docs/formats.md), without the converter. What transformers' own packing code
and layers make of the same trits, scales and folders is recorded in golden/packing (golden/record_packing.py).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import checkpoints, tiny_tokenizers
from tests.checkpoint_recipes import Recipe, config

Floats = NDArray[np.float32]
Trits = NDArray[np.int8]
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]  # name → dtype, shape, data, as safetensors has them

SHORT, LONG = 8, 24  # significant bits of a scale: fp16 and bf16 hold the short ones, only float32 the long ones


@dataclass(frozen=True)
class Packed:
    """One checkpoint: `base` gives shapes and config.json, the rest how its linear weights lie on disk.

    `packing` is "bitnet", "base3", "latent" or "grid" (floats that are ternary already). `group` neighbouring columns
    share a scale of `scale_bits` significant bits; None means one for the tensor, of which bitnet packing may also
    store one per row. `scale_shape` ("one", "scalar" or "row") and `scale_dtype` are how bitnet packing spells it;
    with `divides` its layer divides by it.
    """

    base: Recipe
    packing: str
    group: int | None = None
    scale_bits: int = SHORT
    scale_shape: str = "one"
    scale_dtype: str = "BF16"
    divides: bool = False
    sub_norms: tuple[str, str] | None = None
    ternary_embeddings: bool = False


def _bitnet(**keys: object) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitnet", **keys}}


def _2b4t(**quantization: object) -> Recipe:
    extra = {"hidden_act": "relu2", "auto_map": {"AutoConfig": "configuration_bitnet.BitNetConfig"}}
    extra |= _bitnet(linear_class="autobitlinear", **quantization)
    return Recipe("BitNetForCausalLM", "float", tied=True, rope_theta=500000.0, extra=extra)


def _llama(quantization: Mapping[str, Any], **keys: Any) -> Recipe:
    return Recipe("LlamaForCausalLM", "float", rope_theta=1000042.0, extra=quantization, **keys)


def _qwen2(**keys: Any) -> Recipe:
    return Recipe("Qwen2ForCausalLM", "float", rope_theta=1000000.0, tokenizer="qwen2", vocab=384, **keys)


_SUB_NORMS = ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
_1BITLLM_SUB_NORMS = ("self_attn.inner_attn_ln", "mlp.ffn_layernorm")
_1BITLLM = {"model_type": "llama", "weight_bits": 1, "input_bits": 8}
_MINICPM = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64}
_BASE3 = {"quantization_config": {"quant_method": "bitnet_158", "group_size": 64, "packing": "base3_columns"}}
_KEPT = ["lm_head"]

PACKED: Mapping[str, Packed] = {
    "2b4t": Packed(_2b4t(quantization_mode="offline"), "bitnet", sub_norms=_SUB_NORMS),
    "2b4t-scalar": Packed(
        _2b4t(quantization_mode="offline"), "bitnet", None, LONG, "scalar", "F32", sub_norms=_SUB_NORMS
    ),
    "2b4t-online": Packed(_2b4t(quantization_mode="online"), "latent", sub_norms=_SUB_NORMS),
    "falcon3": Packed(_llama(_bitnet(modules_to_not_convert=_KEPT), head_dim=128), "bitnet", divides=True),
    "llama-rows": Packed(
        _llama(_bitnet(linear_class="bitlinear", modules_to_not_convert=None)), "bitnet", None, LONG, "row", "F32", True
    ),
    "llama-online": Packed(
        _llama(_bitnet(linear_class="autobitlinear", quantization_mode="online", modules_to_not_convert=_KEPT)),
        "latent",
    ),
    "falcon-e-bfloat16": Packed(_llama(_bitnet(modules_to_not_convert=_KEPT), head_dim=64), "grid"),
    "1bitllm": Packed(
        Recipe("BitnetForCausalLM", "float", "F16", tied=True, kv_heads=4, extra=_1BITLLM),
        "latent",
        sub_norms=_1BITLLM_SUB_NORMS,
    ),
    "14b-seed": Packed(_qwen2(), "base3", 64, LONG, ternary_embeddings=True),
    "14b-seed-tensor": Packed(_qwen2(), "base3", None, LONG, ternary_embeddings=True),
    "14b-newer": Packed(_qwen2(extra=_BASE3), "base3", 64),
    # 288 and 480 columns are padded to 320 and 512.
    "14b-padded": Packed(_qwen2(hidden=288, ffn=480, extra=_BASE3), "base3", 64, LONG),
    "bitcpm": Packed(Recipe("MiniCPMForCausalLM", "float", tied=True, extra=_MINICPM), "grid", 128),
    "bonsai": Packed(
        Recipe("Qwen3ForCausalLM", "float", "F16", head_dim=64, rope_theta=1000000.0, tokenizer="qwen2", vocab=384),
        "grid",
        128,
        ternary_embeddings=True,
    ),
    "qwen3-tensor": Packed(
        Recipe("Qwen3ForCausalLM", "float", "F32", head_dim=64, rope_theta=1000000.0, tokenizer="qwen2", vocab=384),
        "grid",
        None,
        LONG,
    ),
}


def build(name: str, folder: Path) -> Path:
    """Write checkpoint `name` into `folder` (made if missing) and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    base = PACKED[name].base
    write_config(folder, config(base))
    tiny_tokenizers.write(base.tokenizer, folder)
    write_tensors(folder, stored(name))
    return folder


def write_config(folder: Path, keys: Mapping[str, Any]) -> None:
    """Write config.json."""
    checkpoints._write_json(folder / "config.json", keys)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json, for a test to change."""
    keys: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return keys


def write_tensors(folder: Path, tensors: Stored) -> None:
    """Write model.safetensors."""
    checkpoints._write_safetensors(folder / "model.safetensors", tensors)


def floats(values: Floats, dtype: str) -> tuple[str, tuple[int, ...], bytes]:
    """Return one float tensor as safetensors has it; `dtype` must hold the values."""
    return dtype, values.shape, checkpoints._encode(np.asarray(values, order="C"), dtype)


def stored(name: str) -> Stored:
    """Return what model.safetensors of checkpoint `name` holds."""
    return {key: entry for _, _, entries in _tensors(name) for key, entry in entries.items()}


def weights(name: str) -> dict[str, Floats]:
    """Return every tensor as the model computes with it, by the checkpoint's names."""
    return {key: values for key, values, _ in _tensors(name)}


# --- packing -----------------------------------------------------------------------------------------------------


def pack_bitnet(trits: Trits) -> NDArray[np.uint8]:
    """Return bytes (rows / 4, columns): the i-th quarter of the rows as trit + 1 at bits 2i and 2i + 1."""
    first, second, third, fourth = np.split((trits + 1).astype(np.uint8), 4)
    return first + 4 * second + 16 * third + 64 * fourth


def pack_base3(trits: Trits) -> NDArray[np.uint8]:
    """Return bytes (rows, columns / 4): four neighbours' trit + 1 as base-3 digits, the first the lowest."""
    digits = (trits + 1).astype(np.uint8)
    return digits[:, 0::4] + 3 * digits[:, 1::4] + 9 * digits[:, 2::4] + 27 * digits[:, 3::4]


def absmean(latent: Floats) -> Floats:
    """Return latent weights as their layer computes with them; golden/packing has the same from transformers."""
    mean = np.float32(np.abs(latent.astype(np.float64)).mean())
    inverse = np.float32(1) / max(mean, np.float32(1e-5))
    return np.clip(np.round(latent * inverse), -1, 1) / inverse


# --- tensors -----------------------------------------------------------------------------------------------------


def _tensors(name: str) -> Iterator[tuple[str, Floats, Stored]]:
    """Yield each tensor's name, what the model computes with, and what the file holds for it."""
    packed = PACKED[name]
    for key, shape in _shapes(packed).items():
        embedding = key in ("model.embed_tokens.weight", "lm_head.weight")
        if checkpoints.is_linear(key) or (embedding and packed.ternary_embeddings):
            yield key, *_ternary(name, packed, key, shape)
            continue
        values = checkpoints._rounded(_plain(name, packed, key, shape), packed.base.dtype)
        yield key, values, {key: floats(values, packed.base.dtype)}


def _shapes(packed: Packed) -> dict[str, tuple[int, ...]]:
    shapes = dict(checkpoints._shapes(packed.base))
    if packed.sub_norms is not None:
        attention, ffn = packed.sub_norms
        for layer in range(packed.base.layers):
            shapes[f"model.layers.{layer}.{attention}.weight"] = (packed.base.heads * packed.base.size_per_head,)
            shapes[f"model.layers.{layer}.{ffn}.weight"] = (packed.base.ffn,)
    return shapes


def _plain(name: str, packed: Packed, key: str, shape: tuple[int, ...]) -> Floats:
    if packed.sub_norms is None or not any(part in key for part in packed.sub_norms):
        return checkpoints._tensor(name, packed.base, key, shape)
    values = np.float32(1) + checkpoints._bell(f"{name}/{key}", shape) * np.float32(0.25)
    if packed.base.dtype == "BF16":
        values[0] = 1e-32  # 2B-4T has such values, and fp16 doesn't
    return values


def _ternary(name: str, packed: Packed, key: str, shape: tuple[int, ...]) -> tuple[Floats, Stored]:
    label, base = f"{name}/{key}", packed.base
    noise = checkpoints._bell(label, shape)
    if packed.packing == "latent":
        latent = checkpoints._rounded(noise * np.float32(1.25 / math.sqrt(shape[1])), base.dtype)
        return absmean(latent), {key: floats(latent, base.dtype)}
    trits = (np.sign(noise) * (np.abs(noise) > np.float32(0.43))).astype(np.int8)
    if packed.packing == "bitnet":
        return _bitnet_packed(label, packed, key, trits)
    group = packed.group or shape[1]
    padded = -(-shape[1] // group) * group
    scales = _scales(label, (shape[0], padded // group) if packed.group else (1, 1), shape[1], packed.scale_bits)
    scales = np.broadcast_to(scales, (shape[0], padded // group))
    values = trits * np.repeat(scales, group, axis=1)[:, : shape[1]]
    if packed.packing == "grid":
        return values, {key: floats(values, base.dtype)}
    digits = pack_base3(np.pad(trits, ((0, 0), (0, padded - shape[1]))))
    return values, {key: ("U8", digits.shape, digits.tobytes()), f"{key}.scales": floats(scales, "F32")}


def _bitnet_packed(label: str, packed: Packed, key: str, trits: Trits) -> tuple[Floats, Stored]:
    n_rows, n_columns = trits.shape
    shape: tuple[int, ...] = {"one": (1,), "scalar": (), "row": (n_rows,)}[packed.scale_shape]
    scale = _scales(label, shape, n_columns, packed.scale_bits)
    if packed.divides:
        scale = checkpoints._rounded(1 / scale, packed.scale_dtype)
    worth = 1 / scale if packed.divides else scale
    digits = pack_bitnet(trits)
    entries = {key: ("U8", digits.shape, digits.tobytes()), f"{key}_scale": floats(scale, packed.scale_dtype)}
    return trits * np.broadcast_to(worth.reshape(-1, 1), (n_rows, 1)), entries


def _scales(label: str, shape: tuple[int, ...], n_columns: int, significant_bits: int) -> Floats:
    """Return scales of about 1.25 / sqrt(columns), with so many significant bits."""
    unit = 2.0 ** math.floor(math.log2(1.25 / math.sqrt(n_columns)))
    steps = 1 << significant_bits - 1
    words = checkpoints._raw_words(f"{label}/scales", math.prod(shape)) % np.uint64(steps)
    return ((steps + words.astype(np.float64)) / steps * unit).astype(np.float32).reshape(shape)


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
