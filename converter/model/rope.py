"""Rotary embedding scaling: transformers' parameters as GGUF keys, or as frequency divisors where a graph reads those.

llama.cpp's graphs scale by the keys `rope.scaling.*`; of YaRN's parameters they read neither beta_fast, beta_slow nor
truncate. The llama graph also divides every frequency by the tensor `rope_freqs.weight`, which can express any scaling
that doesn't change with the position; its magnitude goes into `rope.scaling.attn_factor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import Keys, RopeScalingType

from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32, string, uint32
from tritgguf.converter.model.config import DecoderConfig, RopeConfig

ROPE_FREQS = "rope_freqs.weight"
NATIVE_KINDS = ("default", "linear", "yarn")
YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # what llama.cpp computes whatever the file says


@dataclass(frozen=True)
class Rotation:
    """A model's rotary embedding in GGUF: its keys, and the frequency divisors (head_dim / 2,) or None."""

    metadata: Metadata
    divisors: Float32Array | None = None


def rotation(config: DecoderConfig, arch: str, *, reads_divisors: bool) -> Rotation:
    """Express config.json's rotation for the graph `arch`; raise UnsupportedError where the graph can't compute it."""
    rope = config.rope
    keys: Metadata = {
        Keys.Rope.DIMENSION_COUNT.format(arch=arch): uint32(config.head_dim),
        Keys.Rope.FREQ_BASE.format(arch=arch): float32(rope.theta),
    }
    if rope.kind == "default":
        return Rotation(keys)
    if rope.kind == "linear":
        keys[Keys.Rope.SCALING_TYPE.format(arch=arch)] = string(RopeScalingType.LINEAR.value)
        keys[Keys.Rope.SCALING_FACTOR.format(arch=arch)] = float32(rope.number("factor"))
        return Rotation(keys)
    if rope.kind == "yarn" and not (changed := _changed_yarn_options(rope)):
        return Rotation({**keys, **_yarn_keys(config, arch)})
    if rope.kind not in ("yarn", "llama3", "longrope"):
        kinds = ", ".join((*NATIVE_KINDS, "llama3", "longrope") if reads_divisors else NATIVE_KINDS)
        raise UnsupportedError(f"config.json: rope scaling {rope.kind!r} isn't known here; expected one of {kinds}")
    if not reads_divisors:
        what = f"yarn with {' and '.join(changed)}" if rope.kind == "yarn" else rope.kind
        raise UnsupportedError(
            f"config.json: rope scaling {what} can't be expressed in llama.cpp's {config.graph} graph"
        )
    if rope.kind == "llama3":
        return Rotation(keys, llama3_divisors(config))
    magnitude = _yarn_magnitude(config) if rope.kind == "yarn" else _longrope_magnitude(config)
    keys[Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch)] = float32(magnitude)
    return Rotation(keys, yarn_divisors(config) if rope.kind == "yarn" else longrope_divisors(config))


def trained_length(config: DecoderConfig) -> int:
    """Return the number of positions the rotation reaches.

    YaRN stretches the original length by its factor. LongRoPE changes its frequencies beyond the original length, with
    the number of tokens, which a file can't express: up to there the short ones hold.
    """
    if config.rope.kind == "longrope":
        return int(config.rope.number("original_max_position_embeddings", config.max_positions))
    if config.rope.kind != "yarn":
        return config.max_positions
    original, factor = _yarn_stretch(config)
    return max(config.max_positions, round(original * factor))


def _changed_yarn_options(rope: RopeConfig) -> list[str]:
    """Name the YaRN options that differ from what llama.cpp computes."""
    changed = [
        f"{key} {rope.number(key, value):g}" for key, value in YARN_BETAS.items() if rope.number(key, value) != value
    ]
    return changed + (["truncate false"] if rope.options.get("truncate") is False else [])


def _yarn_keys(config: DecoderConfig, arch: str) -> Metadata:
    original, factor = _yarn_stretch(config)
    keys: Metadata = {
        Keys.Rope.SCALING_TYPE.format(arch=arch): string(RopeScalingType.YARN.value),
        Keys.Rope.SCALING_FACTOR.format(arch=arch): float32(factor),
        Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch): uint32(int(original)),
    }
    # llama.cpp applies the default magnitude by itself; attn_factor is what it multiplies that by.
    relative = _yarn_magnitude(config) / _default_magnitude(factor)
    if relative != 1:
        keys[Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch)] = float32(relative)
    return keys


def _yarn_stretch(config: DecoderConfig) -> tuple[float, float]:
    """Return the original length and the factor."""
    original = config.rope.number("original_max_position_embeddings", config.max_positions)
    return original, config.rope.number("factor", config.max_positions / original)


def _default_magnitude(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_magnitude(config: DecoderConfig) -> float:
    """Return what sine and cosine are multiplied by, as transformers' `_compute_yarn_parameters` rules."""
    rope, (_, factor) = config.rope, _yarn_stretch(config)
    if rope.options.get("attention_factor") is not None:
        return rope.number("attention_factor")
    if rope.options.get("mscale") and rope.options.get("mscale_all_dim"):
        numerator = _default_magnitude(factor, rope.number("mscale"))
        return numerator / _default_magnitude(factor, rope.number("mscale_all_dim"))
    return _default_magnitude(factor)


def _wavelengths(config: DecoderConfig) -> npt.NDArray[np.float64]:
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    return np.asarray(2 * np.pi * config.rope.theta**exponents)


def llama3_divisors(config: DecoderConfig) -> Float32Array:
    """Return the frequency divisors of Llama 3.1, as transformers' `_compute_llama3_parameters` rules.

    Wavelengths beyond the original context are stretched by `factor`, short ones kept, those between interpolated.
    """
    rope = config.rope
    factor, low, high = rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    original = rope.number("original_max_position_embeddings", config.max_positions)
    wavelengths = _wavelengths(config)
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    return divisors.astype(np.float32)


def yarn_divisors(config: DecoderConfig) -> Float32Array:
    """Return the frequency divisors of YaRN, as transformers' `_compute_yarn_parameters` rules.

    Between the dimension that turns `beta_fast` times in the original context and the one that turns `beta_slow`
    times, the share of stretching rises from none to all.
    """
    rope, (original, factor) = config.rope, _yarn_stretch(config)

    def dimension(turns: float) -> float:
        return config.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = (dimension(rope.number(key, value)) for key, value in YARN_BETAS.items())
    if rope.options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, config.head_dim - 1.0)
    width = high - low if high != low else 0.001
    stretched = np.clip((np.arange(config.head_dim // 2, dtype=np.float64) - low) / width, 0, 1)
    return (1 / (stretched / factor + 1 - stretched)).astype(np.float32)


def longrope_divisors(config: DecoderConfig) -> Float32Array:
    """Return LongRoPE's short factors, which divide the frequencies up to the original length."""
    factors = config.rope.options.get("short_factor")
    if not isinstance(factors, list) or len(factors) != config.head_dim // 2:
        raise SourceError(f"config.json: longrope needs short_factor, a list of {config.head_dim // 2} numbers")
    return np.array(factors, np.float32)


def _longrope_magnitude(config: DecoderConfig) -> float:
    """Return what sine and cosine are multiplied by, as transformers' `_compute_longrope_parameters` rules."""
    if config.rope.options.get("attention_factor") is not None:
        return config.rope.number("attention_factor")
    original = config.rope.number("original_max_position_embeddings", config.max_positions)
    factor = config.max_positions / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
