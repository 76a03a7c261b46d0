"""Turn the GGUF keys and divisors of a rotation back into config.json's: the other direction of rope.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.config import ORIGINAL_LENGTH, SCALING
from tritgguf.converter.model.rope import LONGROPE_SETS, ROPE_FREQS, longrope_magnitude

# Llama 3.1 has the factor 8, 3.2 has 32; both have these (https://huggingface.co/meta-llama/Llama-3.2-1B).
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_candidates(keys: Settings, divisors: Mapping[str, Float32Array]) -> list[dict[str, Any]]:
    """Return what config.json may say of the rotation, likeliest first.

    `keys` are the architecture's, `divisors` the file's tensors of that kind, each (rotated_size / 2,), by their names.
    Divisors of one set that aren't Llama 3's become LongRoPE's factors for texts of any length: transformers divides by
    them. Raises UnsupportedError for a scaling that isn't known.
    """
    theta = {"rope_theta": shortest(keys.number("rope.freq_base", 10000.0))}
    kind, magnitude = keys.text("rope.scaling.type") or "none", keys.number("rope.scaling.attn_factor", 1.0)
    if all(name in divisors for name in LONGROPE_SETS.values()):
        return [{**theta, **_longrope(keys, divisors, magnitude)}]
    if ROPE_FREQS in divisors:
        factors = _numbers(divisors[ROPE_FREQS])
        longrope = {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": keys.integer("context_length"),
            "attention_factor": magnitude,
        }
        llama3 = {"rope_type": "llama3", "factor": max(factors), **LLAMA3}
        return [{**theta, SCALING: scaling} for scaling in (llama3, longrope)]
    if kind == "linear":
        return [{**theta, SCALING: {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}}]
    if kind == "yarn":
        return [{**theta, SCALING: _yarn(keys, magnitude)}]
    if kind != "none":
        raise UnsupportedError(f"{keys.name('rope.scaling.type')} is {kind!r:.40}; known are none, linear and yarn")
    return [theta]


def _longrope(keys: Settings, divisors: Mapping[str, Float32Array], magnitude: float) -> dict[str, Any]:
    """Return LongRoPE's two sets as transformers 4 spells them, which allows no further key unless it is needed."""
    length = keys.integer("context_length")
    original = keys.integer("rope.scaling.original_context_length", length, least=2)
    scaling: dict[str, Any] = {
        "type": "longrope",
        **{key: _numbers(divisors[name]) for key, name in LONGROPE_SETS.items()},
    }
    if np.float32(longrope_magnitude(length / original, original)) != np.float32(magnitude):
        scaling["attention_factor"] = shortest(magnitude)
    return {ORIGINAL_LENGTH: original, SCALING: scaling}


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


def partial_rotation_setting(keys: Settings) -> ConfigJson:
    """Return config.json's partial_rotary_factor from a GGUF file's keys."""
    head_dim = keys.integer(
        "attention.key_length", keys.integer("embedding_length") // keys.integer("attention.head_count")
    )
    rotated = keys.integer("rope.dimension_count", head_dim, most=head_dim)
    factor = rotated / head_dim
    # int(head_dim * factor) is how many values are rotated: a quotient that was rounded down would make it one less.
    return {"partial_rotary_factor": factor if int(head_dim * factor) == rotated else math.nextafter(factor, 1)}


def shortest(number: float) -> float:
    """Return the shortest decimal number that is the same as float32: 1e-06 instead of 9.99999997475e-07.

    >>> shortest(9.999999974752427e-07)
    1e-06
    """
    return float(str(np.float32(number)))


def _numbers(values: Float32Array) -> list[float]:
    return [shortest(value) for value in values.tolist()]
