"""Rotary embedding scaling: transformers' parameters as GGUF keys, or as the rope_freqs tensor."""

from __future__ import annotations

import math

import numpy as np
from gguf import Keys, RopeScalingType

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.metadata import Metadata, float32, string, uint32
from tritgguf.converter.model_config import DecoderConfig
from tritgguf.converter.tensors import Float32Array


def rope_metadata(config: DecoderConfig, arch: str, kinds: frozenset[str]) -> Metadata:
    """Return the rope keys for a graph that supports `kinds`; raise UnsupportedError for any other kind."""
    rope = config.rope
    if rope.kind not in kinds:
        raise UnsupportedError(
            f"config.json: rope scaling {rope.kind!r} has no counterpart in llama.cpp's {arch} graph; "
            f"it computes {', '.join(sorted(kinds))}"
        )
    keys: Metadata = {
        Keys.Rope.DIMENSION_COUNT.format(arch=arch): uint32(config.head_dim),
        Keys.Rope.FREQ_BASE.format(arch=arch): float32(rope.theta),
    }
    if rope.kind == "linear":
        keys[Keys.Rope.SCALING_TYPE.format(arch=arch)] = string(RopeScalingType.LINEAR.value)
        keys[Keys.Rope.SCALING_FACTOR.format(arch=arch)] = float32(rope.number("factor"))
    if rope.kind == "yarn":
        keys.update(_yarn_metadata(config, arch))
    return keys


def _yarn_metadata(config: DecoderConfig, arch: str) -> Metadata:
    """Return the YaRN keys; the rules are those of transformers' `_compute_yarn_parameters`."""
    rope = config.rope
    if rope.options.get("truncate", True) is False:
        raise UnsupportedError("config.json: yarn with truncate=false has no counterpart in llama.cpp's graph")
    original = rope.number("original_max_position_embeddings", config.max_positions)
    factor = rope.number("factor", config.max_positions / original)
    keys: Metadata = {
        Keys.Rope.SCALING_TYPE.format(arch=arch): string(RopeScalingType.YARN.value),
        Keys.Rope.SCALING_FACTOR.format(arch=arch): float32(factor),
        Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch): uint32(int(original)),
        Keys.Rope.SCALING_YARN_BETA_FAST.format(arch=arch): float32(rope.number("beta_fast", 32.0)),
        Keys.Rope.SCALING_YARN_BETA_SLOW.format(arch=arch): float32(rope.number("beta_slow", 1.0)),
    }
    # llama.cpp always applies the default magnitude; attn_factor is what it multiplies that by.
    default = _yarn_magnitude(factor, 1.0)
    if rope.options.get("attention_factor") is not None:
        magnitude = rope.number("attention_factor")
    elif rope.options.get("mscale") and rope.options.get("mscale_all_dim"):
        magnitude = _yarn_magnitude(factor, rope.number("mscale")) / _yarn_magnitude(
            factor, rope.number("mscale_all_dim")
        )
    else:
        magnitude = default
    if magnitude != default:
        keys[Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch)] = float32(magnitude / default)
    return keys


def _yarn_magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def llama3_rope_freqs(config: DecoderConfig) -> Float32Array:
    """Return the divisors of the rotation frequencies, float32 (head_dim / 2,).

    The rule is that of transformers' `_compute_llama3_parameters`: wavelengths beyond the original context are
    stretched by `factor`, short ones kept, those between interpolated.
    """
    rope = config.rope
    factor, low, high = rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    original = rope.number("original_max_position_embeddings", config.max_positions)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    wavelengths = 2 * np.pi * rope.theta**exponents
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    return divisors.astype(np.float32)
