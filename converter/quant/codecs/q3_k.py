"""Q3_K: 256 values as signed 3-bit codes, one 6-bit scale per 16 and one fp16 scale d for all (3.4375 bits per weight).

A value is d * (scale - 32) * (code - 4). There are two halves of 128 values. In each, byte m (0..31) of the low bits
holds values m, m+32, m+64 and m+96 at bits 0, 2, 4 and 6; bit 4h+j of byte m of the mask is the upper bit of value
m+32j of half h. Of the scales' first eight bytes, the low nibbles hold the low four bits of scales 0 to 7, the high
nibbles those of scales 8 to 15. Bits 2j and 2j+1 of byte 8+i are the upper bits of scale i+4j. The layout is ggml's
`block_q3_K`.
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

MASK, LOW, SCALES, D = slice(0, 32), slice(32, 96), slice(96, 108), slice(108, 110)
LOWEST_CODE, LOWEST_SCALE = -4, -32
LARGEST_CODES = np.arange(2.5, 5, 0.25, dtype=np.float32)
LIMIT = "q3_k ends near 6e6"
SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
BITS = np.arange(8, dtype=np.uint8).reshape(2, 4, 1)


class Q3K(FloatCodec):
    name = "q3_k"
    ggml_type = GGMLQuantizationType.Q3_K
    file_type = LlamaFileType.MOSTLY_Q3_K_M
    block = 256
    block_bytes = 110
    runs_on = EVERYWHERE
    values_kernel = values_kernel("q3_k_values")
    grid_levels = (3,)

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
    digits = (codes - np.int8(LOWEST_CODE)).view(np.uint8).reshape(len(d), 2, 4, 32)
    sixes = (scales.astype(np.int16) - LOWEST_SCALE).astype(np.uint8)
    stored = np.empty((len(d), Q3K.block_bytes), np.uint8)
    stored[:, MASK] = np.bitwise_or.reduce(digits >> np.uint8(2) << BITS, axis=(1, 2))
    stored[:, LOW] = np.bitwise_or.reduce((digits & np.uint8(3)) << SHIFTS, axis=2).reshape(len(d), -1)
    nibbles = sixes & np.uint8(15)
    upper = (sixes >> np.uint8(4)).reshape(len(d), 4, 4)
    stored[:, SCALES][:, :8] = nibbles[:, :8] | nibbles[:, 8:] << np.uint8(4)
    stored[:, SCALES][:, 8:] = np.bitwise_or.reduce(upper << SHIFTS, axis=1)
    stored[:, D] = d.astype("<f2")[:, None].view(np.uint8)
    return stored


PACK_FLOATS, PACK_GRID = floats_kernel("q3_k_floats"), grid_kernel("q3_k_grid")
CODEC = Q3K()
