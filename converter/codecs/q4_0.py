"""Q4_0, its ternary part: one fp16 scale, then 32 values in 16 bytes of 4-bit codes (4.5 bits per weight).

Byte m holds value m in its low nibble and value m+16 in its high one, as trit + 8; ternary values use 7, 8 and 9 of
the 16 codes. The layout is that of ggml's `block_q4_0`.
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.codec import TernaryCodec, put_scales, stored_scales
from tritgguf.converter.errors import TensorError
from tritgguf.converter.kernels import Kernel
from tritgguf.converter.tensors import ByteArray, CodedRows

SCALE_BYTES = 2
ZERO = np.uint8(8)


class Q40(TernaryCodec):
    name = "q4_0"
    ggml_type = GGMLQuantizationType.Q4_0
    file_type = LlamaFileType.MOSTLY_Q4_0
    block = 32
    block_bytes = 18

    def pack(self, rows: CodedRows) -> ByteArray:
        n_rows, n_columns = rows.codes.shape
        stored = np.empty((n_rows, n_columns // self.block, self.block_bytes), np.uint8)
        put_scales(rows, self.block, stored, 0)
        n_blocks = n_rows * stored.shape[1]
        if NIBBLES(np.ascontiguousarray(rows.codes), n_blocks, stored, self.block_bytes, SCALE_BYTES) is None:
            digits = (rows.codes.view(np.uint8) + ZERO).reshape(*stored.shape[:2], 2, 16)
            stored[..., SCALE_BYTES:] = digits[..., 0, :] | digits[..., 1, :] << 4
        return stored.reshape(n_rows, -1)

    def unpack(self, stored: ByteArray) -> CodedRows:
        n_rows = len(stored)
        blocks = stored.reshape(n_rows, -1, self.block_bytes)
        packed = blocks[..., SCALE_BYTES:]
        codes = np.empty((n_rows, blocks.shape[1], 2, 16), np.int8)
        codes[..., 0, :] = (packed & 15) - ZERO
        codes[..., 1, :] = (packed >> 4) - ZERO
        if codes.size and (codes.min() < -1 or codes.max() > 1):
            raise TensorError(
                "Q4_0 data holds other codes than 7, 8 and 9, which stand for the ternary values: "
                "read the tensor as floats instead"
            )
        return CodedRows(codes.reshape(n_rows, -1), stored_scales(blocks[..., :SCALE_BYTES]), self.block)


NIBBLES = Kernel("pack_nibbles", np.int8, int, np.uint8, int, int)
CODEC = Q40()
