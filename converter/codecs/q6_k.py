"""Q6_K: 256 values as signed 6-bit codes, one 8-bit scale per 16 and one fp16 scale d for all (6.5625 bits per weight).

A value is d * scale * (code - 32). Two halves of 128 values; in each, byte m (0..63) of the low nibbles holds value m
and value m+64, byte m (0..31) of the upper bits holds values m, m+32, m+64 and m+96 at bits 0, 2, 4 and 6. The layout
is that of ggml's `block_q6_K`; the scales are chosen by plain squared error and fit the rounded d, so that the error is
about an eighth less than that of ggml's own quantizer, and much less where d is a subnormal fp16 value.
"""

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.codec import FloatCodec
from tritgguf.converter.errors import TensorError
from tritgguf.converter.tensors import ByteArray, Float32Array

SUB = 16  # values that share an 8-bit scale
LOW, HIGH, SCALES, D = slice(0, 128), slice(128, 192), slice(192, 208), slice(208, 210)
# The code that the largest value is tried at; beyond 32 it is cut off, in favour of the others.
LARGEST_CODES = np.arange(27, 34, 0.5, dtype=np.float32)
SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
SMALLEST = np.float32(2.0**-24)  # fp16's smallest value; where no value exceeds it, every code is 0


class Q6K(FloatCodec):
    name = "q6_k"
    ggml_type = GGMLQuantizationType.Q6_K
    file_type = LlamaFileType.MOSTLY_Q6_K
    block = 256
    block_bytes = 210

    def encode(self, values: Float32Array) -> ByteArray:
        # (value, sub-block): sums over the values of a sub-block then run along memory.
        columns = np.ascontiguousarray(values.reshape(-1, SUB).T)
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = _best_scales(columns).reshape(-1, self.block // SUB)
            d = _block_scales(wanted)
        if not np.isfinite(d).all():
            raise TensorError(
                f"a value is {np.abs(values).max():g}, but q6_k ends near 2.3e8: store this tensor as f32"
            )
        steps = d.astype(np.float32)[:, None]
        scales = np.clip(np.rint(_quotient(wanted, steps)), -128, 127)
        digits = np.clip(np.rint(_quotient(columns, (steps * scales).reshape(-1))), -32, 31) + 32
        stored = np.empty((len(d), self.block_bytes), np.uint8)
        stored[:, LOW], stored[:, HIGH] = _packed(digits.astype(np.uint8).T.reshape(len(d), 2, 4, 32))
        stored[:, SCALES] = scales.astype(np.int8).view(np.uint8)
        stored[:, D] = d.astype("<f2")[:, None].view(np.uint8)
        return stored.reshape(len(values), -1)

    def decode(self, stored: ByteArray) -> Float32Array:
        return quants.dequantize(stored, self.ggml_type)


def _best_scales(columns: Float32Array) -> Float32Array:
    """Return the scale of least squared error per column, shape (n_columns,), among those of LARGEST_CODES.

    For given codes the best scale is sum(x * code) / sum(code**2), and lowers the error by the square of the first sum
    over the second.
    """
    peaks = np.take_along_axis(columns, np.abs(columns).argmax(axis=0)[None], axis=0)[0]
    # -32 is a code and 32 isn't: the largest value takes the negative side.
    inverse = _quotient(np.float32(-1), np.where(np.abs(peaks) < SMALLEST, np.float32(0), peaks))
    scales: Float32Array = np.zeros_like(peaks)
    gains: Float32Array = np.zeros_like(peaks)
    for largest_code in LARGEST_CODES:
        codes = np.rint(columns * (inverse * largest_code))
        np.clip(codes, -32, 31, out=codes)
        products = (columns * codes).sum(axis=0)
        scale = _quotient(products, np.square(codes, out=codes).sum(axis=0))
        gain = scale * products
        better = ~(gain <= gains)  # a NaN or Inf must come through
        scales, gains = np.where(better, scale, scales), np.where(better, gain, gains)
    return scales


def _block_scales(scales: Float32Array) -> npt.NDArray[np.float16]:
    """Return d per block, shape (n_blocks,): the scale of largest magnitude over -128, rounded away from zero.

    Rounded so, no 8-bit scale is cut off, and d is 0 in blocks of zeros only.
    """
    exact = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)[:, 0] / np.float32(-128)
    nearest: npt.NDArray[np.float16] = exact.astype(np.float16)
    away: npt.NDArray[np.float16] = np.nextafter(nearest, np.copysign(np.float16(np.inf), nearest))
    return np.where(np.abs(nearest.astype(np.float32)) < np.abs(exact), away, nearest)


def _quotient(dividends: Float32Array | np.float32, divisors: Float32Array) -> Float32Array:
    """Return dividends / divisors, and 0 where the divisor is 0."""
    return np.where(divisors == 0, np.float32(0), dividends / np.where(divisors == 0, np.float32(1), divisors))


def _packed(digits: ByteArray) -> tuple[ByteArray, ByteArray]:
    """Return the bytes of the low nibbles and of the upper bits, from codes + 32, (n_blocks, halves, quarters, 32)."""
    low, high = digits & np.uint8(15), digits >> np.uint8(4)
    nibbles = low[:, :, :2] | low[:, :, 2:] << np.uint8(4)
    pairs = np.bitwise_or.reduce(high << SHIFTS, axis=2)
    return nibbles.reshape(len(digits), -1), pairs.reshape(len(digits), -1)


CODEC = Q6K()
