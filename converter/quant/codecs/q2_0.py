"""Q2_0: one fp16 scale, then 64 values in 16 bytes of 2-bit codes (2.25 bits per weight).

Byte m holds values 4m, 4m+1, 4m+2 and 4m+3 at bits 0, 2, 4 and 6 as code + 1. The stored 3 means twice the scale, which
only four-level tensors contain. The layout is ggml's `block_q2_0`; its scale may be negative.
"""

import numpy as np

from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes
from tritgguf.converter.quant.codec import TernaryCodec, pack_kernel, stored_scales
from tritgguf.converter.quant.ggml_types import MOSTLY_Q2_0, Q2_0

SCALE_BYTES = 2
SHIFTS = np.array([0, 2, 4, 6], np.uint8)
# The four codes of every byte as one uint32: a table lookup is several times faster than shifts along an axis of four.
CODES_OF_BYTE = ((np.arange(256, dtype=np.uint8)[:, None] >> SHIFTS & 3) - np.uint8(1)).view(np.uint32)[:, 0]


class Q20(TernaryCodec):
    name = "q2_0"
    ggml_type = Q2_0
    file_type = MOSTLY_Q2_0
    block = 64
    block_bytes = 18
    runs_on = ("cpu", "cuda", "metal", "vulkan")
    rows_read_on = ("cpu", "cuda", "metal", "vulkan")
    refused_by = ("ollama",)  # since 0.31.2, as a whole file: docs/ollama.md
    slow_on_x86 = True  # scalar code, some ten times slower than TQ2_0
    codes_at = SCALE_BYTES
    scales_at = (0,)
    exact_levels = (3, 4)
    kernel = pack_kernel("pack_q2_0")

    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        fours = (codes.view(np.uint8) + np.uint8(1)).view("<u4")
        # Move digit k from bit 8k to bit 2k of the lowest byte.
        blocks[:, SCALE_BYTES:] = (fours | fours >> 6 | fours >> 12 | fours >> 18) & 0xFF

    def unpack(self, stored: ByteArray) -> CodedRows:
        n_rows = len(stored)
        blocks = stored.reshape(n_rows, -1, self.block_bytes)
        packed = blocks[..., SCALE_BYTES:]
        fours = np.empty(packed.shape, np.uint32)
        if TRITS(np.ascontiguousarray(packed), packed.size, CODES_OF_BYTE, fours) is None:
            fours = CODES_OF_BYTE[packed]
        codes = fours.view(np.int8)
        scales = stored_scales(blocks[..., :SCALE_BYTES])
        negative = scales < 0
        if negative.any():  # a ternary block's scale is above zero, a four-level block's sign belongs to its codes
            negative &= ~(packed & packed >> 1 & 0b01010101).any(axis=-1)
            codes *= np.where(negative, np.int8(-1), np.int8(1))[..., None]
        return CodedRows(codes.reshape(n_rows, -1), np.where(negative, -scales, scales), self.block)


TRITS = Kernel("look_up", np.uint8, int, np.uint32, np.uint32)
CODEC = Q20()
