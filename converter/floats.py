"""Floats of 16 bits and float32, both ways; a value that isn't finite is found on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tritgguf.converter.kernels import Kernel
from tritgguf.converter.tensors import Float32Array

Words = npt.NDArray[np.unsignedinteger[Any]]
Half = npt.NDArray[np.uint16]

FLOAT_VIEWS = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}  # the words that hold each
LARGEST_F16 = np.float32(65504)


def widened(words: Words, dtype: str) -> tuple[Float32Array, bool]:
    """Return what BF16, F16 or F32 `words` stand for, in their shape, and whether every value is finite."""
    words = np.ascontiguousarray(words)
    values: Float32Array = np.empty(words.shape, np.float32)
    n_infinite = WIDEN[dtype](words.reshape(-1), values.reshape(-1).view(np.uint32), values.reshape(-1))
    if n_infinite is not None:
        return values, n_infinite == 0
    if dtype == "BF16":
        values = (words.astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(invalid="ignore"):
            values = words.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)
    return values, bool(np.isfinite(values).all())


def _widen_bf16(words: Words, bits: npt.NDArray[np.uint32], _values: Float32Array) -> int:
    largest = np.uint16(0)
    for index in range(len(words)):
        bits[index] = np.uint32(words[index]) << np.uint32(16)
        largest = max(largest, np.uint16(words[index] & np.uint16(0x7FFF)))
    return int(largest >= 0x7F80)


def _widen_f16(words: Words, bits: npt.NDArray[np.uint32], values: Float32Array) -> int:
    largest = np.uint16(0)
    for index in range(len(words)):
        magnitude = np.uint32(words[index]) & np.uint32(0x7FFF)
        largest = max(largest, np.uint16(magnitude))
        if magnitude < 0x0400:  # zero and subnormal values: multiples of 2**-24
            values[index] = np.float32(magnitude) * np.float32(2.0**-24)
        else:
            bits[index] = (magnitude << np.uint32(13)) + np.uint32(112 << 23)  # the exponent's bias is 127, not 15
        bits[index] |= (np.uint32(words[index]) & np.uint32(0x8000)) << np.uint32(16)
    return int(largest >= 0x7C00)


def _widen_f32(words: Words, bits: npt.NDArray[np.uint32], _values: Float32Array) -> int:
    largest = np.uint32(0)
    for index in range(len(words)):
        bits[index] = words[index]
        largest = max(largest, np.uint32(words[index] & np.uint32(0x7FFFFFFF)))
    return int(largest >= 0x7F800000)


def narrowed(values: Float32Array) -> tuple[Half, float]:
    """Return float32 values as fp16 words, rounded to nearest even, in their shape; and their largest magnitude.

    Where that is more than fp16 holds, 65504, the words mean nothing.
    """
    values = np.ascontiguousarray(values)
    words: Half = np.empty(values.shape, np.uint16)
    flat = values.reshape(-1)
    largest = NARROW(flat, flat.view(np.uint32), words.reshape(-1))
    if largest is not None:
        return words, float(np.uint32(largest).view(np.float32))
    with np.errstate(over="ignore"):
        words = values.astype("<f2").view(np.uint16)
    return words, float(np.abs(values).max(initial=0))


def _narrow(values: Float32Array, bits: npt.NDArray[np.uint32], words: Half) -> int:
    largest = np.uint32(0)
    for index in range(len(values)):
        magnitude = bits[index] & np.uint32(0x7FFFFFFF)
        largest = max(largest, magnitude)
        even = magnitude >> np.uint32(13) & np.uint32(1)
        half = (magnitude + np.uint32(0xFFF) + even >> np.uint32(13)) - np.uint32(112 << 10)
        subnormal = np.uint32(np.rint(abs(values[index]) * np.float32(2.0**24)))  # below 2**-14
        half = subnormal if magnitude < np.uint32(0x38800000) else half
        words[index] = half | (bits[index] >> np.uint32(16) & np.uint32(0x8000))
    return int(largest)


WIDEN = {"BF16": Kernel(_widen_bf16), "F16": Kernel(_widen_f16), "F32": Kernel(_widen_f32)}
NARROW = Kernel(_narrow)
