"""STQ1_0, Tencent's type of three nonzero signs in four columns: 64 nibbles, 64 sign bits, an fp16 scale per 256.

Group g has nibble g and bit g of the signs, and the four elements 64 · (g / 16) + g mod 16 + 16 · lane. A nibble's
upper two bits are the lane of the zero; of the other lanes the first is +, the second is negative where bit 0 is set,
the third where bit 1 is; the sign bit turns all of them. https://github.com/ggml-org/llama.cpp/pull/22836
"""

import numpy as np

from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout

GROUP, BYTES, NIBBLE_BYTES, SIGN_BYTES = 256, 42, 32, 8


def _lanes() -> Codes:
    """Return the four codes of each nibble, (16, 4)."""
    lanes = np.zeros((16, 4), np.int8)
    for nibble in range(16):
        others = [lane for lane in range(4) if lane != nibble >> 2]
        lanes[nibble, others] = (1, -1 if nibble & 1 else 1, -1 if nibble & 2 else 1)
    return lanes


LANES = _lanes()


class Stq10(ForeignType):
    name = "STQ1_0"
    numbers = (42, 43)
    origin = "Tencent's Hunyuan (Hy-MT) 1.25-bit files"
    loaded_by = "only a llama.cpp with Tencent's change (ggml-org/llama.cpp#22836)"
    layout = Layout(GROUP, BYTES)
    group = GROUP

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        blocks = stored.reshape(-1, BYTES)
        packed = blocks[:, :NIBBLE_BYTES]
        nibbles = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(blocks), 64)
        signs = np.unpackbits(np.ascontiguousarray(blocks[:, NIBBLE_BYTES : NIBBLE_BYTES + SIGN_BYTES]), axis=1,
                              bitorder="little")  # fmt: skip
        lanes = LANES[nibbles] * (1 - 2 * signs.astype(np.int8))[..., None]
        ordered = lanes.reshape(len(blocks), 4, 16, 4).swapaxes(2, 3)
        return np.ascontiguousarray(ordered).reshape(len(stored), n_columns)

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        halves = np.ascontiguousarray(stored.reshape(len(stored), -1, BYTES)[..., NIBBLE_BYTES + SIGN_BYTES :])
        return halves.view("<f2")[..., 0].astype(np.float32)


FOREIGN = Stq10()
