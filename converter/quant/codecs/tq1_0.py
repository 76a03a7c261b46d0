"""TQ1_0: 256 ternary values in 52 bytes of base-3 digits, then one fp16 scale (1.6875 bits per weight).

A byte holds five digits as the base-3 fraction 0.d1d2d3d4d5, times 256 and rounded up, so that multiplying by 3 carries
out the next digit. Values 0..159 fill bytes 0..31 (value m + 32n is digit n of byte m), 160..239 fill bytes 32..47
(m + 16n), 240..255 fill bytes 48..51 with four digits each (m + 4n). The layout is that of `quantize_row_tq1_0_ref` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes
from tritgguf.converter.quant.codec import TernaryCodec, pack_kernel, stored_scales

CODE_BYTES = 52
SECTIONS = ((0, 5, 32), (160, 5, 16), (240, 4, 4))  # first value, digits per byte, bytes
FRACTIONS = np.array([(number * 256 + 242) // 243 for number in range(243)], np.uint8)


class TQ10(TernaryCodec):
    name = "tq1_0"
    ggml_type = GGMLQuantizationType.TQ1_0
    file_type = LlamaFileType.MOSTLY_TQ1_0
    block = 256
    block_bytes = 54
    runs_on = ("cpu", "vulkan")
    rows_read_on = ("cpu", "vulkan")
    refused_by = ("ollama",)  # since 0.31.2, as a whole file: docs/ollama.md

    codes_at = 0
    scales_at = (CODE_BYTES,)
    kernel = pack_kernel("pack_tq1_0")

    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        digits = codes.view(np.uint8) + np.uint8(1)
        position = 0
        for first, n_digits, n_bytes in SECTIONS:
            section = digits[:, first : first + n_digits * n_bytes].reshape(-1, n_digits, n_bytes)
            number = np.zeros((len(codes), n_bytes), np.uint8)
            for digit in range(n_digits):
                number += section[:, digit] * np.uint8(3 ** (4 - digit))
            blocks[:, position : position + n_bytes] = FRACTIONS[number]
            position += n_bytes

    def unpack(self, stored: ByteArray) -> CodedRows:
        n_rows = len(stored)
        blocks = stored.reshape(n_rows, -1, self.block_bytes)
        codes: Codes = np.empty((n_rows, blocks.shape[1], self.block), np.int8)
        flat = np.ascontiguousarray(blocks).reshape(-1, self.block_bytes)
        if UNPACK(flat, len(flat), self.block_bytes, codes) is None:
            _unpack(flat, codes.reshape(-1, self.block))
        return CodedRows(codes.reshape(n_rows, -1), stored_scales(blocks[..., CODE_BYTES:]), self.block)


def _unpack(blocks: ByteArray, codes: Codes) -> None:
    position = 0
    for first, n_digits, n_bytes in SECTIONS:
        fraction = blocks[:, position : position + n_bytes]
        for digit in range(n_digits):
            tripled = fraction.astype(np.uint16) * 3
            start = first + digit * n_bytes
            codes[:, start : start + n_bytes] = (tripled >> 8).astype(np.int8) - 1
            fraction = tripled.astype(np.uint8)  # the low byte holds the remaining digits
        position += n_bytes


UNPACK = Kernel("unpack_base3", np.uint8, int, int, np.int8)
CODEC = TQ10()
