"""Seeded Hugging Face checkpoints of two layers in every way in which ternary weights lie on disk.

`build(name, folder)` writes one, `weights(name)` says what its model computes with. Both start from trits and scales and
follow the formats' descriptions (docs/formats.md); nothing here uses the converter. What transformers' own packing code
and layers make of the same trits, scales and folders is recorded in golden/packing (golden/record_packing.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
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

BF16_BITS, F32_BITS = 8, 24  # a scale of 8 significant bits is a bf16 and an fp16 value; one of 24 is neither


@dataclass(frozen=True)
class Packed:
    """One checkpoint: `base` gives shapes and config.json, the rest how its linear weights lie on disk.

    `packing` is "bitnet", "base3", "masters" or "grid" (floats that are ternary already). `group` neighbouring columns
    share a scale of `scale_bits` significant bits; None means one for the tensor. `scale_shape` and `scale_dtype` are
    how bitnet packing spells it ("row" is one per row), `divides` that its layer divides by it.
    """

    base: Recipe
    packing: str
    group: int | None = None
    scale_bits: int = BF16_BITS
    scale_shape: str = "one"
    scale_dtype: str = "BF16"
    divides: bool = False
    sub_norms: tuple[str, str] | None = None
    ternary_embeddings: bool = False


def _quantized(**more: object) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitnet", **more}}


_LLAMA, _QWEN2 = "LlamaForCausalLM", "Qwen2ForCausalLM"
_SUB_NORMS = ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
_2B4T_KEYS = {"hidden_act": "relu2", "auto_map": {"AutoConfig": "configuration_bitnet.BitNetConfig"}}
_OFFLINE = _quantized(linear_class="autobitlinear", quantization_mode="offline")
_ONLINE = _quantized(linear_class="autobitlinear", quantization_mode="online")
_FALCON = {**_quantized(modules_to_not_convert=["lm_head"])}
_1BITLLM = {"model_type": "llama", "weight_bits": 1, "input_bits": 8}
_MINICPM = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64}


def _2b4t(extra: Mapping[str, Any]) -> Recipe:
    return Recipe("BitNetForCausalLM", "float", tied=True, rope_theta=500000.0, extra={**_2B4T_KEYS, **extra})


def _falcon(extra: Mapping[str, Any]) -> Recipe:
    return Recipe(_LLAMA, "float", head_dim=128, rope_theta=1000042.0, extra=extra)


def _seed(**more: Any) -> Recipe:
    return Recipe(_QWEN2, "float", rope_theta=1000000.0, tokenizer="qwen2", **more)


_NEWER = {"quantization_config": {"quant_method": "bitnet_158", "group_size": 64, "packing": "base3_columns"}}

PACKED: Mapping[str, Packed] = {
    "2b4t": Packed(_2b4t(_OFFLINE), "bitnet", sub_norms=_SUB_NORMS),
    "2b4t-scalar": Packed(_2b4t(_OFFLINE), "bitnet", F32_BITS, scale_shape="scalar", scale_dtype="F32",
                          scale_bits=F32_BITS, sub_norms=_SUB_NORMS),
    "2b4t-online": Packed(_2b4t(_ONLINE), "masters", sub_norms=_SUB_NORMS),
}
