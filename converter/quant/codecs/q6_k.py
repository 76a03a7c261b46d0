"""Q6_K: 256 values as signed 6-bit codes, one 8-bit scale per 16 and one fp16 scale d for all (6.5625 bits per weight).

A value is d * scale * (code - 32). There are two halves of 128 values. In each, byte m (0..63) of the low bits holds
the low four bits of values m and m+64; byte m (0..31) of the upper bits holds those of values m, m+32, m+64 and m+96 at
bits 0, 2, 4 and 6. The layout is ggml's `block_q6_K`. Scales are chosen by plain squared error, after d is rounded: the
error is about an eighth less than that of ggml's own quantizer, and much less if d is a subnormal fp16 value.
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.tensors import ByteArray, Float32Array
from tritgguf.converter.quant.codec import EVERYWHERE, FloatCodec, floats_kernel, grid_kernel, values_kernel
from tritgguf.converter.quant.scaled_blocks import (
    D_FACTORS,
    SUB,
    Codes,
    Halves,
    encoded,
    fitted,
    out_of_range,
    too_large,
)

LOW, HIGH, SCALES, D = slice(0, 128), slice(128, 192), slice(192, 208), slice(208, 210)
LOWEST_CODE, LOWEST_SCALE = -32, -128
# Codes to try for the largest value; above 32 it is clipped, which lowers the error of the others.
LARGEST_CODES = np.arange(27, 34, 0.5, dtype=np.float32)
LIMIT = "q6_k ends near 2.3e8"
SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)


class Q6K(FloatCodec):
    name = "q6_k"
    ggml_type = GGMLQuantizationType.Q6_K
    file_type = LlamaFileType.MOSTLY_Q6_K
    block = 256
    block_bytes = 210
    runs_on = EVERYWHERE
    values_kernel = values_kernel("q6_k_values")
    grid_levels = (3, 9, 27)

    def encode(self, values: Float32Array) -> ByteArray:
        rows = np.ascontiguousarray(values)
        blocks: ByteArray = np.empty((len(rows), self.row_bytes(rows.shape[1])), np.uint8)
        overflows = PACK_FLOATS(rows, rows.size // self.block, LARGEST_CODES, len(LARGEST_CODES), blocks)
        if overflows:
            raise too_large(values, LIMIT)
        if overflows is not None:
            return blocks
        columns = np.ascontiguousarray(values.reshape(-1, SUB).T)
        return _stored(*encoded(columns, LOWEST_CODE, LOWEST_SCALE, LARGEST_CODES, LIMIT)).reshape(len(values), -1)

    def pack_grid(self, codes: Codes, steps: Float32Array) -> ByteArray:
        blocks: ByteArray = np.empty((len(codes), self.block_bytes), np.uint8)
        overflows = PACK_GRID(codes, steps, len(codes), D_FACTORS, len(D_FACTORS), blocks)
        if overflows:
            raise out_of_range(steps)
        if overflows is not None:
            return blocks
        return _stored(*fitted(codes, steps, -LOWEST_CODE - 1, LOWEST_SCALE))

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.dequantize(stored)


def _stored(d: Halves, scales: Codes, codes: Codes) -> ByteArray:
    stored = np.empty((len(d), Q6K.block_bytes), np.uint8)
    digits = (codes - np.int8(LOWEST_CODE)).view(np.uint8)
    stored[:, LOW], stored[:, HIGH] = _packed(digits.reshape(len(d), 2, 4, 32))
    stored[:, SCALES] = scales.astype(np.int8).view(np.uint8)
    stored[:, D] = d.astype("<f2")[:, None].view(np.uint8)
    return stored


def _packed(digits: ByteArray) -> tuple[ByteArray, ByteArray]:
    """Return the bytes of the low four and the upper two bits of codes + 32, (n_blocks, halves, quarters, 32)."""
    low, high = digits & np.uint8(15), digits >> np.uint8(4)
    nibbles = low[:, :, :2] | low[:, :, 2:] << np.uint8(4)
    pairs = np.bitwise_or.reduce(high << SHIFTS, axis=2)
    return nibbles.reshape(len(digits), -1), pairs.reshape(len(digits), -1)


PACK_FLOATS, PACK_GRID = floats_kernel("q6_k_floats"), grid_kernel("q6_k_grid")
CODEC = Q6K()
