"""Q4_0, restricted to ternary and four-level data: one fp16 scale, then 32 values in 16 bytes of 4-bit codes.

That is 4.5 bits per weight. Byte m holds value m in its low nibble and value m+16 in its high one, as code + 8; codes
from -1 to 2 use 7 to 10 of the 16. The layout is ggml's `block_q4_0`; its scale may be negative. Token embeddings and
single tensors on no grid use all 16 codes, as ggml's quantizer does.
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import EVERYWHERE, TernaryCodec, pack_kernel, stored_scales
from tritgguf.converter.quant.ggml_codec import GgmlCodec

SCALE_BYTES = 2
ZERO = np.uint8(8)


class Q40(TernaryCodec):
    name = "q4_0"
    ggml_type = GGMLQuantizationType.Q4_0
    file_type = LlamaFileType.MOSTLY_Q4_0
    block = 32
    block_bytes = 18
    runs_on = EVERYWHERE
    exact_levels = (3, 4)
    more_levels = True
    any_floats = GgmlCodec(GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0, limit=8 * 65520)
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
        scales = stored_scales(blocks[..., :SCALE_BYTES])
        turned = codes.min(axis=(2, 3), initial=0) < -1  # the four levels with the opposite sign
        codes[turned] *= -1
        if codes.size and (codes.min() < -1 or codes.max() > 2):
            raise TensorError(
                "Q4_0 data holds other codes than those of three or four levels, 7 to 10 or 6 to 9 in a block: "
                "read the tensor as floats instead"
            )
        return CodedRows(codes.reshape(n_rows, -1), np.where(turned, -scales, scales), self.block)


CODEC = Q40()
