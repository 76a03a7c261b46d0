"""Two-bit codes in groups of 128: an fp16 scale, then 32 bytes with four neighbours each, first the lowest bits.

Prism ML's forks of llama.cpp write this block, `block_q2_0` there, under two type numbers:
https://github.com/PrismML-Eng/llama.cpp
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.gguf_io.foreign_type import FOUR, TERNARY, ForeignType, Layout
from tritgguf.converter.quant.codecs.q2_0 import CODES_OF_BYTE

GROUP = 128
BLOCK: np.dtype[Any] = np.dtype([("scale", "<f2"), ("packed", "u1", (GROUP // 4,))])


class Fours(ForeignType):
    """A type of these blocks."""

    layout = Layout(GROUP, BLOCK.itemsize)
    group = GROUP
    packing = "fours"

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        packed = np.ascontiguousarray(_blocks(stored)["packed"])
        fours = np.empty(packed.shape, np.uint32)
        if LOOK_UP(packed, packed.size, CODES_OF_BYTE, fours) is None:
            fours = CODES_OF_BYTE[packed]
        return fours.view(np.int8).reshape(len(stored), n_columns)

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        scales: Float32Array = _blocks(stored)["scale"].astype(np.float32)
        return scales

    def scales_and_levels(self, stored: ByteArray, tail: ByteArray) -> tuple[Float32Array, int]:
        stored = np.ascontiguousarray(stored)
        blocks = _blocks(stored)
        scales: Float32Array = np.empty(blocks.shape, np.float32)
        high = LOOK_AT_FOURS(stored, blocks.size, scales)
        if high is None:
            packed = blocks["packed"]
            high, scales = bool((packed & packed >> 1 & 0b01010101).any()), self.scales(stored, tail)
        return scales, FOUR if high else TERNARY


def _blocks(stored: ByteArray) -> npt.NDArray[Any]:
    """Return rows of bytes as blocks, (n_rows, n_blocks)."""
    return stored.view(BLOCK)


LOOK_UP = Kernel("look_up", np.uint8, int, np.uint32, np.uint32)
LOOK_AT_FOURS = Kernel("look_at_fours", np.uint8, int, np.float32)
