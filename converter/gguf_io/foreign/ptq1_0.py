"""PTQ1_0, Prism ML's base-3 type: 128 trits in 26 bytes, then an fp16 scale.

As in TQ1_0, trit n of byte b is ((b · 3ⁿ mod 256) · 3 >> 8) - 1. 16 bytes hold five trits each, 8 bytes five, 2 bytes
four; trit n of the m-th byte of a section of k bytes is the section's element n · k + m.
https://github.com/PrismML-Eng/llama.cpp
"""

import numpy as np

from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout

GROUP, BYTES = 128, 28
SECTIONS = ((0, 16, 5), (16, 24, 5), (24, 26, 4))  # first byte, end, trits per byte
SCALE = 26
POWERS = np.array([1, 3, 9, 27, 81], np.uint16)
TRITS = (((np.arange(256, dtype=np.uint16)[:, None] * POWERS & 255) * 3 >> 8).astype(np.int8) - np.int8(1)).copy()


class Ptq10(ForeignType):
    name = "PTQ1_0"
    numbers = (143,)
    origin = "Prism ML's Bonsai files, called *-PTQ1_0.gguf"
    loaded_by = "only Prism ML's llama.cpp (PrismML-Eng/llama.cpp)"
    layout = Layout(GROUP, BYTES)
    group = GROUP

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        blocks = stored.reshape(len(stored), -1, BYTES)
        parts = []
        for first, end, n_trits in SECTIONS:
            trits = TRITS[blocks[..., first:end], :n_trits]
            parts.append(trits.swapaxes(2, 3).reshape(*blocks.shape[:2], -1))
        return np.concatenate(parts, axis=2).reshape(len(stored), n_columns)

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        halves = np.ascontiguousarray(stored.reshape(len(stored), -1, BYTES)[..., SCALE:])
        return halves.view("<f2")[..., 0].astype(np.float32)


FOREIGN = Ptq10()
