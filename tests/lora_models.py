"""The models and the LoRA settings that golden/lora was recorded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.pytorch_files import TINY

UNTIED = replace(TINY, tied=False)
MODELS = {
    "lora-untied": UNTIED,
    "lora-biases": replace(UNTIED, attention_bias=True, mlp_bias=True, layers=1),
    "lora-layers": replace(UNTIED, layers=2),
}


def row_step(shape: tuple[int, ...]) -> int:
    """Return which rows were recorded: each, or one in so many of a matrix."""
    return 1 if len(shape) == 1 else 3 if shape[0] <= 64 else 16


ATTENTION = ["q_proj", "k_proj"]
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "plain": (
        "lora-untied",
        {"r": 4, "lora_alpha": 8, "target_modules": [*ATTENTION, "v_proj", "o_proj", "down_proj"]},
    ),
    "rslora": ("lora-untied", {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        "lora-layers",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 3},
            "alpha_pattern": {"model.layers.0.mlp.up_proj": 5, ".*1.self_attn.k_proj": 7},
        },
    ),
    "saved": ("lora-untied", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm", "v_proj"]}),
    "embeddings": ("lora-untied", {"r": 2, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "dora": ("lora-untied", {"r": 2, "use_dora": True, "target_modules": ATTENTION}),
    "bias": ("lora-biases", {"r": 2, "lora_bias": True, "target_modules": ATTENTION}),
    "all-biases": ("lora-biases", {"r": 2, "bias": "all", "target_modules": ATTENTION}),
    "one-layer": ("lora-layers", {"r": 2, "target_modules": ATTENTION, "layers_to_transform": [1]}),
    "all-linear": ("lora-untied", {"r": 2, "target_modules": "all-linear", "fan_in_fan_out": True}),
    "bf16": ("lora-untied", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}),
    "pickled": ("lora-untied", {"r": 2, "target_modules": ["gate_proj"]}),
}
