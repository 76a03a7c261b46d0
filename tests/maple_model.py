"""A small Maple: transformers doesn't have the class, so its checkpoint isn't among those with recorded logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests import checkpoints, tiny_tokenizers
from tests.checkpoint_recipes import Recipe, config

Floats = NDArray[np.float32]

TYPES = ["full_attention", "sliding_attention", "sliding_attention"]
WINDOW, CLAMP = 24, 7.0
KEYS = {
    "model_type": "maple",
    "moe_intermediate_size": 256,
    "intermediate_size": 640,  # unused
    "norm_topk_prob": True,
    "num_shared_experts": 0,
    "use_qk_norm": True,
    "sliding_window": WINDOW,
    "layer_types": TYPES,
    "partial_rotary_factor": 0.5,
    "nope_on_global_attention": True,
}
RECIPE = Recipe(
    "MapleForCausalLM",
    "ternary-row",
    layers=3,
    head_dim=64,
    ffn=256,
    experts=6,
    experts_used=3,
    tokenizer="qwen2",
    rms_norm_eps=1e-6,
    extra=KEYS,
)
TOKEN_IDS = [int(word % RECIPE.vocab) for word in checkpoints._raw_words("maple/token_ids", 96)]
# Each expert's gate and up are large enough that a part of their values is clamped; down makes up for it.
GAINS = {".gate_proj.weight": 4.0, ".up_proj.weight": 4.0, ".down_proj.weight": 0.125}


@cache
def weights() -> dict[str, Floats]:
    """Return the checkpoint's tensors as the model computes with them."""
    tensors = checkpoints.weights("maple", RECIPE)
    tensors["model.word_embeddings.weight"] = tensors.pop("model.embed_tokens.weight")
    gained = {name: gain for name in tensors for end, gain in GAINS.items() if name.endswith(end)}
    return {name: values * np.float32(gained.get(name, 1)) for name, values in tensors.items()}


def write_config(folder: Path, **changes: object) -> None:
    """Write config.json with changes; None removes a key."""
    keys = {key: value for key, value in {**config(RECIPE), **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(keys), encoding="utf-8")


def write(folder: Path, tensors: Mapping[str, Floats] | None = None) -> Path:
    """Write the checkpoint."""
    folder.mkdir()
    write_config(folder)
    tiny_tokenizers.write(RECIPE.tokenizer, folder)
    stored = {
        name: ("BF16", values.shape, checkpoints._encode(values, "BF16"))
        for name, values in (tensors or weights()).items()
    }
    checkpoints._write_safetensors(folder / "model.safetensors", stored)
    return folder
