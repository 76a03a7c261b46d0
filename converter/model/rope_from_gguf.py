"""Turn the GGUF keys and divisors of a rotation back into config.json's: the other direction of rope.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.errors import UnsupportedError

# Llama 3.1 has the factor 8, 3.2 has 32; both have these (https://huggingface.co/meta-llama/Llama-3.2-1B).
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_candidates(keys: Settings, divisors: Float32Array | None) -> list[dict[str, Any]]:
    """Return what config.json may say of the rotation, likeliest first.

    `keys` are the architecture's, `divisors` is rope_freqs.weight, (head_dim / 2,). Divisors that aren't Llama 3's
    become LongRoPE's factors for texts of any length: transformers divides by them. Raises UnsupportedError for a
    scaling that isn't known.
    """
    theta = {"rope_theta": float(str(np.float32(keys.number("rope.freq_base", 10000.0))))}
    kind, magnitude = keys.text("rope.scaling.type") or "none", keys.number("rope.scaling.attn_factor", 1.0)
    if divisors is not None:
        factors = [float(divisor) for divisor in divisors]
        longrope = {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": keys.integer("context_length"),
            "attention_factor": magnitude,
        }
        llama3 = {"rope_type": "llama3", "factor": max(factors), **LLAMA3}
        return [{**theta, "rope_scaling": scaling} for scaling in (llama3, longrope)]
    if kind == "linear":
        return [{**theta, "rope_scaling": {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}}]
    if kind == "yarn":
        return [{**theta, "rope_scaling": _yarn(keys, magnitude)}]
    if kind != "none":
        raise UnsupportedError(f"{keys.name('rope.scaling.type')} is {kind!r:.40}; known are none, linear and yarn")
    return [theta]


def _yarn(keys: Settings, relative_magnitude: float) -> dict[str, Any]:
    factor = keys.number("rope.scaling.factor")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
    }
    if relative_magnitude != 1:  # of the default, which llama.cpp applies itself
        scaling["attention_factor"] = relative_magnitude * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return scaling
