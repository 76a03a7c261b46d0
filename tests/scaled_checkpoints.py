"""Seeded Hugging Face checkpoints of two layers as compressed-tensors, humming and FP8 quantizers store them.

`build(name, folder)` writes one, `weights(name)` says what its model computes with. Both start from codes and scales,
following the descriptions of the formats (docs/formats.md), without the converter. What the reference code makes of the
same folders is recorded in golden/compressed_tensors (golden/record_compressed_tensors.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import checkpoints, packed_checkpoints, tiny_tokenizers
from tests.checkpoint_recipes import Recipe, config
from tests.packed_checkpoints import Stored, floats

Floats = NDArray[np.float32]
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Form:
    """How one linear layer lies on disk.

    `style` is "words" (compressed-tensors' pack-quantized), "items" (its other formats), "humming" or "fp8". `block`
    is the rows and columns that share a scale, 0 meaning all. `lowest` and `highest` limit integer codes; without them
    the codes are 8-bit floats.
    """

    style: str
    bits: int
    block: tuple[int, int] = (1, 128)
    scale_dtype: str = "BF16"
    symmetric: bool = True
    lowest: int | None = None
    highest: int | None = None
    scale_suffix: str = "weight_scale"
    scale_bits: int = packed_checkpoints.SHORT


@dataclass(frozen=True)
class Quantized:
    """One checkpoint: `form` tells how each linear layer is stored, None for floats; `keys` are quantization_config."""

    base: Recipe
    form: Callable[[str], Form | None]
    keys: Mapping[str, Any]
    extra: Mapping[str, tuple[str, tuple[int, ...], bytes]] = field(default_factory=dict)


def integers(style: str, bits: int, block: tuple[int, int] = (1, 128), **keys: Any) -> Form:
    """Return the form of integer codes of that many bits."""
    return Form(style, bits, block, **{"lowest": -(2 ** (bits - 1)), "highest": 2 ** (bits - 1) - 1, **keys})


def _args(bits: int, strategy: str, group: int | None = None, kind: str = "int", **keys: Any) -> dict[str, Any]:
    """Return a group's `weights` as compressed-tensors writes them."""
    size = {"group_size": group, "strategy": strategy, "symmetric": True, "dynamic": False}
    return {"num_bits": bits, "type": kind, **size, **keys}


def _groups(form: str, *groups: tuple[list[str], dict[str, Any]], **keys: Any) -> dict[str, Any]:
    """Return a quantization_config of compressed-tensors."""
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{number}": {"targets": targets, "weights": weights, "input_activations": None}
            for number, (targets, weights) in enumerate(groups)
        },
        **keys,
    }


def _llama(**keys: Any) -> Recipe:
    return Recipe("LlamaForCausalLM", "float", rope_theta=1000042.0, **keys)


def _qwen3(**keys: Any) -> Recipe:
    return Recipe("Qwen3ForCausalLM", "float", head_dim=64, rope_theta=1000000.0, tokenizer="qwen2", vocab=384, **keys)


def _gsq(key: str) -> Form | None:
    """GSQ's own writer: codes of 2 bits in 4, some layers ternary, attention left as floats."""
    if "self_attn" in key:
        return None
    return Form("words", 4, lowest=-1 if "up_proj" in key else -2, highest=1)


def _mixed(key: str) -> Form:
    if "self_attn" in key:
        return integers("words", 8, (1, 0), scale_dtype="F16")
    return integers("words", 4, (1, 64), symmetric="down_proj" not in key)


_STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True, "dynamic": False}
_FP8_KEYS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
_HUMMING = {
    "quant_method": "humming",
    "b_dtype": "uint2",
    "weight_scale_group_size": 128,
    "weight_scale_type": "group",
    "has_zero_point": False,
    "ignore": ["lm_head", "embed_tokens"],
}

QUANTIZED: Mapping[str, Quantized] = {
    "ct-2bit": Quantized(
        _llama(),
        lambda key: integers("words", 2),
        _groups("pack-quantized", (["Linear"], _args(2, "group", 128))),
    ),
    "ct-2bit-row": Quantized(
        _qwen3(dtype="F16"),
        lambda key: integers("words", 2, (1, 0), scale_dtype="F16", lowest=-1 if "v_proj" in key else -2),
        _groups("pack-quantized", (["Linear"], _args(2, "channel"))),
    ),
    # One scale with more digits than fp16 has: it becomes a tensor of its own.
    "ct-2bit-tensor": Quantized(
        _llama(),
        lambda key: integers("words", 2, (0, 0), scale_dtype="F32", scale_bits=packed_checkpoints.LONG),
        _groups("pack-quantized", (["Linear"], _args(2, "tensor"))),
    ),
    "ct-2bit-asymmetric": Quantized(
        _llama(),
        lambda key: integers("words", 2, (1, 64), symmetric=False),
        _groups("pack-quantized", (["Linear"], _args(2, "group", 64, symmetric=False))),
    ),
    "gsq-4bit": Quantized(
        _qwen3(),
        _gsq,
        _groups(
            "pack-quantized",
            (["Linear"], _args(4, "group", 128)),
            ignore=["lm_head", r"re:.*self_attn\..*"],
        ),
    ),
    "ct-mixed": Quantized(
        _llama(),
        _mixed,
        _groups(
            "pack-quantized",
            (["re:.*self_attn.*", "model.layers.9.mlp.up_proj"], _args(8, "channel")),
            (["re:.*(gate|up)_proj$"], _args(4, "group", 64)),
            (["re:.*down_proj$"], _args(4, "group", 64, symmetric=False)),
        ),
    ),
    "ct-int8": Quantized(
        _llama(),
        lambda key: integers("items", 8, (1, 0)),
        _groups("int-quantized", (["Linear"], _args(8, "channel"))),
    ),
    "ct-fp8": Quantized(
        _qwen3(),
        lambda key: Form("items", 8, (0, 0) if "o_proj" in key else (1, 0)),
        _groups(
            "float-quantized",
            (["Linear"], _args(8, "channel", kind="float")),
            ([r"re:.*o_proj$"], _args(8, "tensor", kind="float")),
        ),
    ),
    "fp8-blocks": Quantized(
        _qwen3(),
        lambda key: Form("fp8", 8, (128, 128), "F32", scale_suffix="weight_scale_inv"),
        {**_FP8_KEYS, "weight_block_size": [128, 128]},
    ),
    "fp8-bf16-scales": Quantized(
        _llama(),
        lambda key: Form("fp8", 8, (128, 128), "BF16", scale_suffix="weight_scale_inv"),
        {**_FP8_KEYS, "weight_block_size": [128, 128]},
    ),
    "humming": Quantized(_qwen3(), lambda key: integers("humming", 2, scale_suffix="weight_scale"), _HUMMING),
    "humming-4bit": Quantized(
        _llama(),
        lambda key: integers("humming", 4, (1, 0), scale_suffix="weight_scale"),
        {"quant_method": "humming", "dtype": "int4"},
    ),
}


# What compressed-tensors quantizes and writes itself, as golden/compressed_tensors/written.npz.
SMALL = Recipe("Qwen3ForCausalLM", "float", hidden=64, ffn=128, layers=1, heads=2, kv_heads=1, head_dim=64, tied=True)


def build(name: str, folder: Path) -> Path:
    """Write checkpoint `name` into `folder` (made if missing) and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    quantized = QUANTIZED[name]
    keys = {**config(quantized.base), "quantization_config": dict(quantized.keys)}
    packed_checkpoints.write_config(folder, keys)
    tiny_tokenizers.write(quantized.base.tokenizer, folder)
    packed_checkpoints.write_tensors(folder, stored(name))
    return folder


def stored(name: str) -> Stored:
    """Return what model.safetensors of checkpoint `name` holds."""
    return {key: entry for _, _, entries in _all_tensors(name) for key, entry in entries.items()}


def weights(name: str) -> dict[str, Floats]:
    """Return every tensor as the model computes with it, by the checkpoint's names."""
    return {key: values for key, values, _ in _all_tensors(name)}


@lru_cache(maxsize=2)
def _all_tensors(name: str) -> tuple[tuple[str, Floats, Stored], ...]:
    return tuple(_tensors(name))


def _tensors(name: str) -> Iterator[tuple[str, Floats, Stored]]:
    """Yield each tensor's name, what the model computes with, and what the file holds for it."""
    quantized = QUANTIZED[name]
    for key, shape in checkpoints._shapes(quantized.base).items():
        form = quantized.form(key) if checkpoints.is_linear(key) else None
        if form is not None:
            yield key, *_quantized(f"{name}/{key}", key, form, shape)
            continue
        values = checkpoints._rounded(checkpoints._tensor(name, quantized.base, key, shape), quantized.base.dtype)
        yield key, values, {key: floats(values, quantized.base.dtype)}


def _quantized(label: str, key: str, form: Form, shape: tuple[int, ...]) -> tuple[Floats, Stored]:
    block = (form.block[0] or shape[0], form.block[1] or shape[1])
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    noise = checkpoints._bell(label, shape)
    scales = packed_checkpoints._scales(label, grid, shape[1], form.scale_bits)
    zeros = np.zeros(grid, np.int32)
    if form.lowest is None or form.highest is None:
        scales = scales / np.float32(128)
        codes = nearest_e4m3(noise * np.float32(64))
        numbers: Floats = e4m3(codes)
    else:
        spread = max(form.highest, 1) / 2.5 if form.bits > 2 and form.highest > 1 else 1.0
        scales = scales / np.float32(2.0 ** round(math.log2(max(1.0, spread))))
        integer = np.clip(np.rint(noise * np.float32(spread)), form.lowest, form.highest).astype(np.int32)
        if not form.symmetric:
            words = checkpoints._raw_words(f"{label}/zeros", math.prod(grid)) % np.uint64(3)
            zeros = words.astype(np.int32).reshape(grid) - 1
        codes, numbers = integer, integer.astype(np.float32)
    scales = checkpoints._rounded(scales, form.scale_dtype)
    values = (numbers - spread_over(zeros, block, shape)) * spread_over(scales, block, shape)
    rounded_to = form.scale_dtype if form.style in ("words", "items") else "F32"
    return checkpoints._rounded(values.astype(np.float32), rounded_to), _entries(key, form, shape, codes, scales, zeros)


def _entries(key: str, form: Form, shape: tuple[int, ...], codes: Codes, scales: Floats, zeros: Codes) -> Stored:
    module = key.removesuffix(".weight")
    per_tensor = scales.size == 1 and form.style in ("words", "items")
    entries: Stored = {
        f"{module}.{form.scale_suffix}": floats(scales.reshape(1) if per_tensor else scales, form.scale_dtype)
    }
    if form.style in ("words", "humming"):
        packed = pack_words(codes, form.bits)
        name = f"{module}.weight_packed" if form.style == "words" else key
        entries[name] = ("I32", packed.shape, packed.tobytes())
    else:
        entries[key] = ("I8" if form.lowest is not None else "F8_E4M3", shape, codes.astype(np.int8).tobytes())
    if form.style == "words":
        entries[f"{module}.weight_shape"] = ("I64", (2,), np.array(shape, "<i8").tobytes())
    if not form.symmetric:
        down = np.ascontiguousarray(pack_words(zeros.T, form.bits).T)
        entries[f"{module}.weight_zero_point"] = ("I32", down.shape, down.tobytes())
    return entries


# --- packing -----------------------------------------------------------------------------------------------------


def pack_words(codes: Codes, bits: int) -> NDArray[np.int32]:
    """Return int32 words (rows, ⌈columns · bits / 32⌉): code + 2^(bits-1), the first of a row in the lowest bits."""
    per_word = 32 // bits
    padded = np.pad(codes.astype(np.int64) + 2 ** (bits - 1), ((0, 0), (0, -codes.shape[1] % per_word)))
    shifted = padded.reshape(len(codes), -1, per_word) << (np.arange(per_word) * bits)
    return shifted.sum(axis=2).astype(np.uint32).view(np.int32)


def spread_over(numbers: NDArray[Any], block: tuple[int, int], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return each block's number for each of its values, (rows, columns)."""
    return numbers.repeat(block[0], axis=0).repeat(block[1], axis=1)[: shape[0], : shape[1]]


def e4m3(codes: NDArray[Any]) -> Floats:
    """Return the values of bytes by E4M3's definition: a sign, four bits of exponent with bias 7, three of fraction."""
    byte = codes.astype(np.int64) & 0xFF
    exponent, fraction = byte >> 3 & 15, (byte & 7).astype(np.float64)
    magnitude = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    magnitude[byte & 0x7F == 0x7F] = np.nan
    return np.where(byte & 0x80, -magnitude, magnitude).astype(np.float32)


def nearest_e4m3(values: Floats) -> Codes:
    """Return bytes of E4M3 values near to these, by magnitude from below."""
    known = e4m3(np.arange(127))
    magnitudes = np.searchsorted(known, np.abs(values), side="right") - 1
    return (magnitudes + np.where(values < 0, 128, 0)).astype(np.int32)


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
