"""Scaling of rotary embeddings: transformers' parameters as GGUF keys, or as frequency divisors.

llama.cpp's graphs scale by the keys `rope.scaling.*`. Of YaRN's parameters they don't read beta_fast, beta_slow and
truncate. Some graphs, such as llama, also divide every frequency by the tensor `rope_freqs.weight`. That expresses any
scaling that doesn't change with the position; its magnitude goes into `rope.scaling.attn_factor`. A few graphs have two
such tensors for LongRoPE, and choose by the size of the context.

The rules are those of transformers:
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
YaRN: https://arxiv.org/abs/2309.00071, LongRoPE: https://arxiv.org/abs/2402.13753.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import Keys, RopeScalingType

from tritgguf.converter.core.settings import LARGEST_INTEGER, shown
from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32, string, uint32
from tritgguf.converter.model.config import ORIGINAL_LENGTH, Ability, DecoderConfig, RopeConfig

ROPE_FREQS = "rope_freqs.weight"
LONGROPE_SETS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
NATIVE_KINDS = ("default", "linear", "yarn")
YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # llama.cpp always computes with these


@dataclass(frozen=True)
class Rotation:
    """A model's rotary embedding in GGUF: its keys, and the frequency divisors, (rotated_size / 2,), or None."""

    metadata: Metadata
    divisors: Float32Array | None = None


def rotation(config: DecoderConfig, arch: str, *, reads_divisors: bool) -> Rotation:
    """Express config.json's rotation for a graph, with keys under the prefix `arch`.

    `reads_divisors` tells whether the graph divides by rope_freqs.weight. Raises UnsupportedError where the graph can't
    compute the rotation.
    """
    rope = config.rope
    keys: Metadata = {
        Keys.Rope.DIMENSION_COUNT.format(arch=arch): uint32(config.rotated_size),
        Keys.Rope.FREQ_BASE.format(arch=arch): float32(rope.theta),
    }
    if rope.kind == "default":
        return Rotation(keys)
    if rope.kind == "linear":
        keys[Keys.Rope.SCALING_TYPE.format(arch=arch)] = string(RopeScalingType.LINEAR.value)
        keys[Keys.Rope.SCALING_FACTOR.format(arch=arch)] = float32(rope.options.number("factor"))
        return Rotation(keys)
    if rope.kind == "longrope" and Ability.BOTH_LONGROPE_SETS in config.abilities:
        keys[Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch)] = uint32(int(original_length(config)))
        keys[Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch)] = float32(_longrope_magnitude(config))
        return Rotation(keys)
    if rope.kind == "yarn" and not (changed := _changed_yarn_options(rope)):
        return Rotation({**keys, **_yarn_keys(config, arch)})
    if rope.kind not in ("yarn", "llama3", "longrope"):
        kinds = ", ".join((*NATIVE_KINDS, "llama3", "longrope") if reads_divisors else NATIVE_KINDS)
        raise UnsupportedError(f"config.json: rope scaling {shown(rope.kind)} isn't known; expected one of {kinds}")
    if not reads_divisors:
        what = f"yarn with {' and '.join(changed)}" if rope.kind == "yarn" else rope.kind
        raise UnsupportedError(
            f"config.json: rope scaling {what} can't be expressed in llama.cpp's {config.graph} graph"
        )
    if rope.kind == "llama3":
        return Rotation(keys, llama3_divisors(config))
    magnitude = _yarn_magnitude(config) if rope.kind == "yarn" else _longrope_magnitude(config)
    if magnitude != 1:  # llama.cpp's default
        keys[Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch)] = float32(magnitude)
    return Rotation(keys, yarn_divisors(config) if rope.kind == "yarn" else longrope_divisors(config))


def trained_length(config: DecoderConfig) -> int:
    """Return how many positions the rotation covers.

    YaRN stretches the original length by its factor. LongRoPE uses other frequencies as soon as a text is longer than
    the original length. For most graphs a file can hold only one set, so it gets the short one and ends there.
    """
    if config.rope.kind == "longrope" and Ability.BOTH_LONGROPE_SETS not in config.abilities:
        return int(original_length(config))
    if config.rope.kind != "yarn":
        return config.max_positions
    original, factor = _yarn_stretch(config)
    if original * factor > LARGEST_INTEGER:
        raise SourceError(
            f"{config.rope.options.name('factor')} {factor:g} times {ORIGINAL_LENGTH} {original:g} must be at most "
            f"{LARGEST_INTEGER} positions"
        )
    return max(config.max_positions, round(original * factor))


def original_length(config: DecoderConfig) -> float:
    """Return the length that the model was trained for before its rotation was stretched, in tokens, at least 2."""
    return config.rope.options.number(ORIGINAL_LENGTH, config.max_positions, least=2, most=LARGEST_INTEGER)


def _changed_yarn_options(rope: RopeConfig) -> list[str]:
    """Name the YaRN options that differ from what llama.cpp computes."""
    found = {key: rope.options.number(key, value) for key, value in YARN_BETAS.items()}
    changed = [f"{key} {value:g}" for key, value in found.items() if value != YARN_BETAS[key]]
    return changed + ([] if rope.options.flag("truncate", True) else ["truncate false"])


def _yarn_keys(config: DecoderConfig, arch: str) -> Metadata:
    original, factor = _yarn_stretch(config)
    keys: Metadata = {
        Keys.Rope.SCALING_TYPE.format(arch=arch): string(RopeScalingType.YARN.value),
        Keys.Rope.SCALING_FACTOR.format(arch=arch): float32(factor),
        Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch): uint32(int(original)),
    }
    # llama.cpp applies the default magnitude itself, and multiplies it by attn_factor.
    relative = _yarn_magnitude(config) / _default_magnitude(factor)
    if relative != 1:
        keys[Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch)] = float32(relative)
    return keys


def _yarn_stretch(config: DecoderConfig) -> tuple[float, float]:
    """Return the original length and the factor."""
    original = original_length(config)
    return original, config.rope.options.number("factor", config.max_positions / original)


def _default_magnitude(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_magnitude(config: DecoderConfig) -> float:
    """Return what sine and cosine are multiplied by, as transformers' `_compute_yarn_parameters` does."""
    options, (_, factor) = config.rope.options, _yarn_stretch(config)
    if options.has("attention_factor"):
        return options.number("attention_factor")
    mscale, mscale_all_dim = options.number("mscale", 0, least=0), options.number("mscale_all_dim", 0, least=0)
    if mscale and mscale_all_dim:
        return _default_magnitude(factor, mscale) / _default_magnitude(factor, mscale_all_dim)
    return _default_magnitude(factor)


def _wavelengths(config: DecoderConfig) -> npt.NDArray[np.float64]:
    exponents = np.arange(0, config.rotated_size, 2, dtype=np.float64) / config.rotated_size
    return np.asarray(2 * np.pi * config.rope.theta**exponents)


def llama3_divisors(config: DecoderConfig) -> Float32Array:
    """Return Llama 3.1's frequency divisors, (rotated_size / 2,), as transformers' `_compute_llama3_parameters` does.

    Long wavelengths are stretched by `factor`, short ones are kept, and those in between are interpolated.
    """
    options, original = config.rope.options, original_length(config)
    factor, low, high = (options.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise options.wrong("high_freq_factor", f"larger than low_freq_factor {low:g}")
    wavelengths = _wavelengths(config)
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    return divisors.astype(np.float32)


def yarn_divisors(config: DecoderConfig) -> Float32Array:
    """Return the frequency divisors of YaRN, (rotated_size / 2,), as transformers' `_compute_yarn_parameters` does.

    A dimension that turns `beta_fast` times or more within the original length is kept. One that turns `beta_slow`
    times or less is stretched by the factor. In between, the stretching grows linearly.
    """
    rope, (original, factor) = config.rope, _yarn_stretch(config)
    if rope.theta <= 1:
        raise SourceError(f"config.json: rope_theta must be larger than 1 for yarn rope scaling, found {rope.theta:g}")

    def dimension(turns: float) -> float:
        return config.rotated_size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = (dimension(rope.options.number(key, value)) for key, value in YARN_BETAS.items())
    if rope.options.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, config.rotated_size - 1.0)
    width = high - low if high != low else 0.001
    stretched = np.clip((np.arange(config.rotated_size // 2, dtype=np.float64) - low) / width, 0, 1)
    return (1 / (stretched / factor + 1 - stretched)).astype(np.float32)


def longrope_divisors(config: DecoderConfig, key: str = "short_factor") -> Float32Array:
    """Return LongRoPE's factors, (rotated_size / 2,): the short ones divide frequencies up to the original length."""
    return np.array(config.rope.options.numbers(key, config.rotated_size // 2), np.float32)


def _longrope_magnitude(config: DecoderConfig) -> float:
    """Return what sine and cosine are multiplied by, as transformers' `_compute_longrope_parameters` does."""
    options, original = config.rope.options, original_length(config)
    if options.has("attention_factor"):
        return options.number("attention_factor")
    return longrope_magnitude(options.number("factor", config.max_positions / original), original)


def longrope_magnitude(factor: float, original: float) -> float:
    """Return what sine and cosine are multiplied by where contexts of `original` tokens are stretched by `factor`."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
