"""I2_S of bitnet.cpp: two-bit codes in blocks of 128 columns, and one float32 scale for the whole tensor.

Byte p of a block's 32 holds elements p, 32 + p, 64 + p and 96 + p, the first in the highest bits, as code + 1. The
scale is behind the last row, with 28 bytes without meaning. The layout is that of x86 and of bitnet.cpp's converters:
https://github.com/microsoft/BitNet/blob/main/src/ggml-bitnet-mad.cpp
"""

import numpy as np

from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout

BLOCK, BYTES, TAIL, SCALE_BYTES = 128, 32, 32, 4


class I2S(ForeignType):
    name = "I2_S"
    numbers = (36,)
    origin = "bitnet.cpp (microsoft/BitNet)"
    loaded_by = "only bitnet.cpp and ik_llama.cpp"
    layout = Layout(BLOCK, BYTES, tail=TAIL)
    packing = "quarters"
    remark = (
        "the file doesn't tell in which order I2_S has its values: they are read in blocks of 128, as bitnet.cpp's "
        "converters and x86 write them; a file that was quantized on ARM has another order and becomes a wrong model"
    )

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        blocks = stored.reshape(len(stored), -1, 1, BYTES)
        digits = blocks >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
        if (digits == 3).any():
            raise TensorError("holds the invalid code 3; expected 0, 1 or 2: the file is damaged or has another order")
        codes: Codes = (digits.reshape(len(stored), n_columns) - np.uint8(1)).view(np.int8)
        return codes

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        scale = np.frombuffer(tail[:SCALE_BYTES].tobytes(), "<f4")
        return np.repeat(scale[:, None], len(stored), axis=0).astype(np.float32)


FOREIGN = I2S()
