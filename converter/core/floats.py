"""Convert between float32, the 16-bit formats bf16 and fp16 and 8-bit floats, and find values that aren't finite."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import ByteArray, Float32Array, Floats

Real = TypeVar("Real", np.float32, np.float64)
Half = npt.NDArray[np.uint16]

LANES, SQUARES_PER_SUM = 16, 256
LARGEST_F16 = np.float32(65504)
BEYOND_F16 = np.float32(65520)  # the smallest magnitude that fp16 rounds to infinity


def widened(floats: Floats) -> Float32Array:
    """Return stored floats as float32, in the same shape; the values may include NaN and Inf."""
    return checked(floats)[0]


def checked(floats: Floats) -> tuple[Float32Array, bool]:
    """Return stored floats as float32, in the same shape, and whether all of them are finite."""
    words, dtype = floats
    values: Float32Array = np.empty(words.shape, np.float32)
    n_infinite = WIDEN(words, floats.kind, words.size, values)
    if n_infinite is not None:
        return values, n_infinite == 0
    if dtype == "BF16":
        values = (words.astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(invalid="ignore"):
            values = words.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)
    return values, bool(np.isfinite(values).all())


def narrowed(floats: Floats) -> tuple[Half, float]:
    """Return stored floats as fp16 words, rounded to nearest even, in the same shape; and the largest magnitude.

    The words are valid only if the largest magnitude is below BEYOND_F16, which a NaN is not.
    """
    halves: Half = np.empty(floats.words.shape, np.uint16)
    largest = NARROW(floats.words, floats.kind, halves.size, halves)
    if largest is not None:
        return halves, float(np.uint32(largest).view(np.float32))
    values = widened(floats)
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype("<f2").view(np.uint16)
    return halves, float(np.abs(values).max(initial=0))


def bf16(values: Float32Array) -> Float32Array:
    """Round finite float32 values to bf16 and back, to nearest even; values out of range become infinite."""
    words = np.ascontiguousarray(values).view(np.uint32)
    words = words + (np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    rounded: Float32Array = words.view(np.float32)
    return rounded


def widened8(stored: ByteArray, dtype: str) -> Floats:
    """Return 8-bit floats as fp16, which holds each of their values, in the same shape; NaN stays NaN."""
    return Floats(EIGHT_BITS[dtype][stored], "F16")


def _e4m3_words() -> Half:
    """Return the fp16 word of each byte of E4M3: bias 7, no infinity, NaN where all other bits are 1.

    The format: https://arxiv.org/abs/2209.05433, table 1.
    """
    magnitudes = np.arange(128)
    exponents, fractions = magnitudes >> 3, magnitudes & 7
    values = np.where(exponents == 0, np.ldexp(fractions, -9), np.ldexp(8.0 + fractions, exponents - 10))
    values[127] = np.nan
    words: Half = values.astype("<f2").view(np.uint16)
    return np.concatenate([words, words | np.uint16(0x8000)])


# By the name that safetensors gives the type: the fp16 word of each byte. E5M2 is the upper half of an fp16 value.
EIGHT_BITS = {"F8_E4M3": _e4m3_words(), "F8_E5M2": np.arange(256, dtype=np.uint16) << np.uint16(8)}


def squares(values: Float32Array, stored: Float32Array) -> tuple[float, float]:
    """Return the sums of (stored - values)² and of values²; every SQUARES_PER_SUM values are added in a fixed order."""
    n_sums = -(-values.size // SQUARES_PER_SUM)
    errors, totals = np.zeros(n_sums, np.float64), np.zeros(n_sums, np.float64)
    own, kept = np.ascontiguousarray(values), np.ascontiguousarray(stored)
    if SQUARES(own, kept, own.size, errors, totals) is None:
        errors, totals = _sums_of_squares(kept - own), _sums_of_squares(own)
    return float(errors.sum()), float(totals.sum())


def _sums_of_squares(values: Float32Array) -> npt.NDArray[np.float64]:
    padded = np.pad(values.reshape(-1), (0, -values.size % SQUARES_PER_SUM))
    return lane_sums(np.square(padded.reshape(-1, SQUARES_PER_SUM // LANES, LANES), dtype=np.float64))


def lane_sums(values: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Return sums, (n,), of values (n, n_steps, n_lanes): step by step in each lane, then the lanes in halves.

    Kernels add in the same order, which decides the rounding; the number of lanes is a power of two.
    """
    sums = values[:, 0].copy()
    for step in range(1, values.shape[1]):
        sums += values[:, step]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    total: npt.NDArray[Real] = sums[:, 0]
    return total


SQUARES = Kernel("squares", np.float32, np.float32, int, np.float64, np.float64)
WIDEN = Kernel("widen", WORDS, int, int, np.float32)
NARROW = Kernel("narrow", WORDS, int, int, np.uint16)
