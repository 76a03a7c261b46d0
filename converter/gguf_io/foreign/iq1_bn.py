"""IQ1_BN of ik_llama.cpp: an fp16 scale before each row, then 64 trits in 13 bytes.

Byte 3i + k of the first 12 holds elements 16i + 5k to 16i + 5k + 4, the first the highest base-3 digit; byte 12 holds
elements 15, 31, 47 and 63. A digit is (byte · m mod 256) · 3 >> 8 with m = 81, 27, 9, 3, 1.
https://github.com/ikawrakow/ik_llama.cpp/blob/main/ggml/src/iqk/iqk_quantize.cpp
"""

import numpy as np

from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout

BLOCK, BYTES, HEAD = 64, 13, 2
FACTORS = np.array([81, 27, 9, 3, 1], np.uint16)
TRITS = (((np.arange(256, dtype=np.uint16)[:, None] * FACTORS & 255) * 3 >> 8).astype(np.int8) - np.int8(1)).copy()


class Iq1Bn(ForeignType):
    name = "IQ1_BN"
    numbers = (134,)
    origin = "ik_llama.cpp"
    loaded_by = "only ik_llama.cpp"
    layout = Layout(BLOCK, BYTES, row_head=HEAD)

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        blocks = stored[:, HEAD:].reshape(-1, BYTES)
        codes = np.empty((len(blocks), 4, 16), np.int8)
        codes[..., :15] = TRITS[blocks[:, :12]].reshape(len(blocks), 4, 15)
        codes[..., 15] = TRITS[blocks[:, 12], :4]
        return codes.reshape(len(stored), n_columns)

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        return np.ascontiguousarray(stored[:, :HEAD]).view("<f2").astype(np.float32)


FOREIGN = Iq1Bn()
