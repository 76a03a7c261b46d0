"""Pack 17 trits as a number below 3^17 < 2^27, and eight such numbers in 27 bytes.

That is 1.588 bits per trit, 0.2 % above the limit log2(3). The first of 17 trits is the lowest base-3 digit; the first
of eight numbers has the lowest bits of the 27 bytes, little-endian.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.tensors import ByteArray

PER_NUMBER, NUMBERS, BITS = 17, 8, 27
BLOCK, BLOCK_BYTES = PER_NUMBER * NUMBERS, BITS * NUMBERS // 8  # 136 trits in 27 bytes
POWERS = 3 ** np.arange(PER_NUMBER, dtype=np.uint32)
BEYOND = 3**PER_NUMBER


def pack_trits(digits: ByteArray) -> ByteArray:
    """Return the bytes, uint8 (n_blocks, 27), of base-3 digits, whose number is a multiple of 136."""
    numbers = np.zeros((digits.size // BLOCK, NUMBERS), np.uint64)
    places = digits.reshape(-1, NUMBERS, PER_NUMBER)
    for place, power in enumerate(POWERS):
        numbers += places[..., place] * power
    stored = np.empty((len(numbers), BLOCK_BYTES), np.uint8)
    for byte in range(BLOCK_BYTES):
        first = 8 * byte // BITS
        bits = numbers[:, first] >> np.uint64(8 * byte - BITS * first)
        if 8 * byte + 8 > BITS * (first + 1):
            bits = bits | numbers[:, first + 1] << np.uint64(BITS * (first + 1) - 8 * byte)
        stored[:, byte] = bits & np.uint64(255)
    return stored


def unpack_trits(stored: ByteArray) -> ByteArray:
    """Return the base-3 digits, uint8 (136 * n_blocks,), of bytes (n_blocks, 27); damaged bytes give digits above 2."""
    wide = np.pad(stored, ((0, 0), (0, 1))).astype(np.uint32)
    digits = np.empty((len(stored), NUMBERS, PER_NUMBER), np.uint8)
    for index in range(NUMBERS):
        byte, shift = divmod(BITS * index, 8)
        window = wide[:, byte] | wide[:, byte + 1] << 8 | wide[:, byte + 2] << 16 | wide[:, byte + 3] << 24
        number = window >> np.uint32(shift)
        if shift > 32 - BITS:
            number = number | wide[:, byte + 4] << np.uint32(32 - shift)
        _digits_of(number & np.uint32(2**BITS - 1), digits[:, index])
    return digits.reshape(-1)


def _digits_of(numbers: npt.NDArray[np.uint32], out: ByteArray) -> None:
    """Write the base-3 digits of numbers, (n,), into `out`, (n, 17); the last digit is above 2 if one is too large."""
    for place in range(PER_NUMBER - 1):
        rest = numbers // np.uint32(3)
        out[:, place] = numbers - np.uint32(3) * rest
        numbers = rest
    out[:, PER_NUMBER - 1] = numbers
