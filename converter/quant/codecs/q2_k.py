"""Q2_K of ternary and four-level data, and of rows whose every part is given (2.625 bits per weight).

A block has 16 bytes of sub-scales, 64 bytes of 2-bit codes and two fp16 scales. A value is
d * sub-scale * stored code - dmin * sub-minimum. If all sub-scales and sub-minima are 1 (bytes 0x11), d = dmin and the
stored code is code + 1, that is exactly d * code. Blocks with a negative scale, which four-level data may have, get
sub-minima of 2 (bytes 0x21), d = dmin = -scale and the stored code 2 - code. The codes are arranged as in TQ2_0: two
halves of 128 values; in each, byte m (0..31) holds values m, m+32, m+64 and m+96 at bits 0, 2, 4 and 6. The layout is
ggml's `block_q2_K`.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.floats import BEYOND_F16
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import (
    EVERYWHERE,
    TernaryCodec,
    grid_kernel,
    pack_kernel,
    stored_scales,
    values_kernel,
)
from tritgguf.converter.quant.codecs.tq2_0 import pairs
from tritgguf.converter.quant.scaled_blocks import D_FACTORS, fitted, out_of_range

ONES = 0x11  # sub-scale 1 in the low nibble, sub-minimum 1 in the high one
ONE_TWO = 0x21  # sub-minimum 2
SIGN = 0x80  # in an fp16 scale's second byte
SUBS, CODES, SCALE, MINIMUM = slice(0, 16), slice(16, 80), slice(80, 82), slice(82, 84)
SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
GROUP = 16  # columns that share a sub-scale and a sub-minimum
MOST = 15  # the largest of either


@dataclass(frozen=True)
class AffineRows:
    """Rows as Q2_K stores them, all parts given.

    Stored codes are uint8 (n_rows, n_columns), from 0 to 3, sub-scales and sub-minima uint8 (n_rows, n_columns / 16),
    up to 15, d and dmin float32 (n_rows, n_columns / 256), which fp16 holds.
    """

    codes: ByteArray
    scales: ByteArray
    minima: ByteArray
    d: Float32Array
    dmin: Float32Array


class Q2K(TernaryCodec):
    name = "q2_k"
    ggml_type = GGMLQuantizationType.Q2_K
    file_type = LlamaFileType.MOSTLY_Q2_K
    block = 256
    block_bytes = 84
    runs_on = EVERYWHERE
    grid_levels = (3,)
    exact_levels = (3, 4)
    more_levels = True
    codes_at = CODES.start
    scales_at = (SCALE.start, MINIMUM.start)
    kernel = pack_kernel("pack_tq2_0")
    values_kernel = values_kernel("q2_k_values")

    def pack_grid(self, codes: Codes, steps: Float32Array) -> ByteArray:
        """Store ternary data with a scale per 16 columns: sub-scale = sub-minimum, from 1 to 15."""
        blocks: ByteArray = np.empty((len(codes), self.block_bytes), np.uint8)
        overflows = PACK_GRID(codes, steps, len(codes), D_FACTORS, len(D_FACTORS), blocks)
        if overflows:
            raise out_of_range(steps)
        if overflows is not None:
            return blocks
        d, subs, _ = fitted(codes, steps, 1, -15)
        digits = (codes + 1).astype(np.uint8).reshape(len(codes), 2, 4, 32)
        stored = np.empty((len(codes), self.block_bytes), np.uint8)
        stored[:, SUBS] = (-subs).astype(np.uint8) * np.uint8(ONES)
        stored[:, CODES] = np.bitwise_or.reduce(digits << SHIFTS, axis=2).reshape(len(codes), -1)
        stored[:, SCALE] = stored[:, MINIMUM] = d.astype("<f2")[:, None].view(np.uint8)
        return stored

    def pack_affine(self, rows: AffineRows) -> ByteArray:
        """Return the bytes, uint8 (n_rows, row bytes); raise TensorError if d or dmin overflows fp16."""
        largest = max(float(np.abs(scales).max(initial=0)) for scales in (rows.d, rows.dmin))
        if not largest < BEYOND_F16:
            raise TensorError(
                f"a block's scale is {largest:g}, but fp16 ends at 65504: store this tensor as bf16 or f32"
            )
        stored: ByteArray = np.empty((rows.d.size, self.block_bytes), np.uint8)
        stored[:, SUBS] = (rows.scales | rows.minima << 4).reshape(len(stored), -1)
        stored[:, CODES] = pairs((rows.codes - np.uint8(1)).view(np.int8))
        for place, scales in ((SCALE, rows.d), (MINIMUM, rows.dmin)):
            stored[:, place] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
        return stored.reshape(len(rows.d), -1)

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.dequantize(stored)

    def new_blocks(self, n_rows: int, n_columns: int) -> ByteArray:
        blocks = super().new_blocks(n_rows, n_columns)
        blocks[..., SUBS] = ONES
        return blocks

    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        blocks[:, CODES] = pairs(codes)

    def _scaled(self, blocks: ByteArray, scales: Float32Array, group: int) -> ByteArray:
        stored = super()._scaled(blocks, scales, group)
        negative = (blocks[..., SCALE.stop - 1] & SIGN) != 0
        if negative.any():
            turned = blocks[negative]
            turned[:, SUBS] = ONE_TWO
            turned[:, CODES] ^= 0xFF  # 3 - (code + 1)
            turned[:, [SCALE.stop - 1, MINIMUM.stop - 1]] &= SIGN - 1
            blocks[negative] = turned
        return stored

    def unpack(self, stored: ByteArray) -> CodedRows:
        n_rows = len(stored)
        blocks = stored.reshape(n_rows, -1, self.block_bytes)
        digits = blocks[..., CODES].reshape(n_rows, -1, 2, 1, 32) >> SHIFTS & 3
        one, two = ((blocks[..., SUBS] == subs).all(axis=-1) for subs in (ONES, ONE_TWO))
        if not (one | two).all() or (blocks[..., SCALE] != blocks[..., MINIMUM]).any():
            raise TensorError(
                "Q2_K data has neither three nor four levels (which needs sub-scales of 1, equal sub-minima of 1 or 2, "
                "and d = dmin): read the tensor as floats instead"
            )
        codes = (digits.reshape(*one.shape, -1) - np.uint8(1)).view(np.int8)
        codes = np.where(two[..., None], 1 - codes, codes)
        scales = stored_scales(blocks[..., SCALE])
        return CodedRows(codes.reshape(n_rows, -1), np.where(two, -scales, scales), self.block)


PACK_GRID = grid_kernel("q2_k_grid")
CODEC = Q2K()
