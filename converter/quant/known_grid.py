"""Store weights on a grid per 16 columns, such as the uniform codec's, in a type that can't hold them exactly.

A type's own quantizer sees only floats and has to guess scales. Here the codes and steps of the grid are found first,
and then the scales of the type with the least squared error for them.
"""

from __future__ import annotations

import numpy as np

from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import Codec, FloatCodec
from tritgguf.converter.quant.grids import BF16_ROUNDING

GROUP = 16
SMALLEST_LEVEL = 2.0**-120  # groups whose largest value is below this are zeros in every type


class KnownGridCodec(FloatCodec):
    """The type of `codec`, for weights on a grid of `levels` levels per 16 columns."""

    def __init__(self, codec: Codec, levels: int) -> None:
        self.codec, self.levels = codec, levels
        self.name, self.ggml_type, self.file_type = codec.name, codec.ggml_type, codec.file_type
        self.block, self.block_bytes = codec.block, codec.block_bytes

    def encode(self, values: Float32Array) -> ByteArray:
        codes, steps = codes_and_steps(values.reshape(-1, GROUP), (self.levels - 1) // 2)
        subs = self.block // GROUP
        blocks = self.codec.pack_grid(codes.reshape(-1, subs, GROUP), steps.reshape(-1, subs))
        return blocks.reshape(len(values), -1)

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.codec.dequantize(stored)


def codes_and_steps(groups: Float32Array, highest: int) -> tuple[Codes, Float32Array]:
    """Return the codes from -highest to highest, (n_groups, 16), and the steps, (n_groups,), of groups on a grid.

    `groups` is (n_groups, 16). The largest value is some level m, and then every value is a multiple of largest / m, up
    to the rounding of fp16 or bf16. The smallest such m is used, since larger ones describe the same values. Raises
    TensorError if a group isn't on such a grid.
    """
    codes: Codes = np.empty(groups.shape, np.int8)
    steps: Float32Array = np.empty(len(groups), np.float32)
    groups = np.ascontiguousarray(groups)
    n_bad = GRID_CODES(groups, len(groups), highest, codes, steps)
    if n_bad is None:
        levels, n_bad = _levels(groups, highest)
        squares = np.square(levels).sum(axis=1)
        steps = pair_sums(groups * levels) / np.where(squares == 0, np.float32(1), squares)
        codes = levels.astype(np.int8)
    if n_bad:
        raise TensorError(f"{n_bad} groups of 16 columns aren't on a grid of {2 * highest + 1} levels")
    return codes, steps


def _levels(groups: Float32Array, highest: int) -> tuple[Float32Array, int]:
    """Return the codes as floats, and the number of groups on no grid."""
    largest = np.abs(groups).max(axis=1)
    codes, open_ones = np.zeros_like(groups), np.flatnonzero(largest >= SMALLEST_LEVEL)
    for level in range(1, highest + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            multiples = groups[open_ones] * (np.float32(level) / largest[open_ones])[:, None]
            nearest = np.rint(multiples)
            fits = (np.abs(multiples - nearest) <= level * BF16_ROUNDING).all(axis=1)
        codes[open_ones[fits]] = nearest[fits]
        open_ones = open_ones[~fits]
        if not open_ones.size:
            break
    return codes, open_ones.size


def pair_sums(rows: Float32Array) -> Float32Array:
    """Return the sum of each row of 16, (n_rows,): first eight of two, then of neighbours; kernels do it so."""
    sums = rows[:, :8] + rows[:, 8:]
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums[:, 0]


GRID_CODES = Kernel("grid_codes", np.float32, int, int, np.int8, np.float32)
