"""IQ2_BN of ik_llama.cpp: a float32 scale before each row, then two-bit codes in blocks of 64 columns.

Byte j of a block's 16 holds elements j, 16 + j, 32 + j and 48 + j, the first in the lowest bits, as code + 1.
https://github.com/ikawrakow/ik_llama.cpp/blob/main/ggml/src/iqk/iqk_quantize.cpp
"""

import numpy as np

from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout

BLOCK, BYTES, HEAD = 64, 16, 4


class Iq2Bn(ForeignType):
    name = "IQ2_BN"
    numbers = (135,)
    origin = "ik_llama.cpp"
    loaded_by = "only ik_llama.cpp"
    layout = Layout(BLOCK, BYTES, row_head=HEAD)

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        blocks = stored[:, HEAD:].reshape(len(stored), -1, 1, BYTES)
        digits = blocks >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
        if (digits == 3).any():
            raise TensorError("holds the invalid code 3; expected 0, 1 or 2: the file is damaged, fetch it again")
        codes: Codes = (digits.reshape(len(stored), n_columns) - np.uint8(1)).view(np.int8)
        return codes

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        return np.ascontiguousarray(stored[:, :HEAD]).view("<f4").astype(np.float32)


FOREIGN = Iq2Bn()
