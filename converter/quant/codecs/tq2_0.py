"""TQ2_0: 256 ternary values in 64 bytes of 2-bit codes, then one fp16 scale (2.0625 bits per weight).

There are two halves of 128 values. In each, byte m (0..31) holds values m, m+32, m+64 and m+96 at bits 0, 2, 4 and 6 as
trit + 1. The layout is that of `quantize_row_tq2_0_ref` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import TernaryCodec, pack_kernel, stored_scales

CODE_BYTES = 64


class TQ20(TernaryCodec):
    name = "tq2_0"
    ggml_type = GGMLQuantizationType.TQ2_0
    file_type = LlamaFileType.MOSTLY_TQ2_0
    block = 256
    block_bytes = 66
    runs_on = ("cpu", "metal", "vulkan")
    rows_read_on = ("cpu", "metal", "vulkan")
    refused_by = ("ollama",)  # since 0.31.2, as a whole file: docs/ollama.md
    codes_at = 0
    scales_at = (CODE_BYTES,)
    kernel = pack_kernel("pack_tq2_0")

    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        blocks[:, :CODE_BYTES] = pairs(codes)

    def unpack(self, stored: ByteArray) -> CodedRows:
        n_rows = len(stored)
        blocks = stored.reshape(n_rows, -1, self.block_bytes)
        codes: Codes = np.empty((n_rows, blocks.shape[1] * self.block), np.int8)
        n_invalid = UNPACK(np.ascontiguousarray(blocks), blocks.shape[0] * blocks.shape[1], self.block_bytes, codes)
        if n_invalid is None:
            packed = blocks[..., :CODE_BYTES].reshape(n_rows, -1, 2, 1, 32)
            digits = packed >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
            codes, n_invalid = (digits.reshape(n_rows, -1) - np.uint8(1)).view(np.int8), int((digits == 3).sum())
        if n_invalid:
            raise TensorError("TQ2_0 data has the invalid code 3: the file is damaged; download or convert it again")
        return CodedRows(codes, stored_scales(blocks[..., CODE_BYTES:]), self.block)


def pairs(codes: Codes) -> ByteArray:
    """Return the 64 code bytes of each block, uint8 (n_blocks, 64), of codes (n_blocks, 256)."""
    digits = (codes.view(np.uint8) + np.uint8(1)).reshape(-1, 2, 4, 32)  # (block, half, bit pair, byte in the half)
    packed: ByteArray = digits[:, :, 0] | digits[:, :, 1] << 2 | digits[:, :, 2] << 4 | digits[:, :, 3] << 6
    return packed.reshape(-1, CODE_BYTES)


UNPACK = Kernel("unpack_pairs", np.uint8, int, int, np.int8)
CODEC = TQ20()
