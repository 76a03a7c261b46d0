"""Q4_0, restricted to ternary data: one fp16 scale, then 32 values in 16 bytes of 4-bit codes (4.5 bits per weight).

Byte m holds value m in its low nibble and value m+16 in its high one, as trit + 8; ternary values use 7, 8 and 9 of
the 16 codes. The layout is ggml's `block_q4_0`.
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import EVERYWHERE, TernaryCodec, pack_kernel, stored_scales

SCALE_BYTES = 2
ZERO = np.uint8(8)


class Q40(TernaryCodec):
    name = "q4_0"
    ggml_type = GGMLQuantizationType.Q4_0
    file_type = LlamaFileType.MOSTLY_Q4_0
    block = 32
    block_bytes = 18
    runs_on = EVERYWHERE
    codes_at = SCALE_BYTES
    scales_at = (0,)
    kernel = pack_kernel("pack_q4_0")

    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        digits = (codes.view(np.uint8) + ZERO).reshape(-1, 2, 16)
        blocks[:, SCALE_BYTES:] = digits[:, 0] | digits[:, 1] << 4

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


CODEC = Q40()
