"""Convert between float32 and the 16-bit formats bf16 and fp16, and find values that aren't finite."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.kernels import WORDS, Kernel
from tritgguf.converter.core.tensors import Float32Array, Floats

Half = npt.NDArray[np.uint16]

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


WIDEN = Kernel("widen", WORDS, int, int, np.float32)
NARROW = Kernel("narrow", WORDS, int, int, np.uint16)
