"""Q4_K: 256 values as 4-bit codes, a 6-bit scale and minimum per 32 and two fp16 scales for all (4.5 bits per weight).

A value is d * scale * code - dmin * minimum. Of each 64 values, byte m (0..31) holds value m in its low nibble and
m+32 in its high one. Scales 0 to 3 are the low six bits of bytes 0 to 3, minima 0 to 3 those of bytes 4 to 7. For
scales and minima 4 to 7, bytes 8 to 11 hold the low four bits (scale in the low nibble, minimum in the high one), and
the top two bits of bytes 0 to 7 hold the upper two bits. The layout is ggml's `block_q4_K`.
"""

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.floats import LANES, lane_sums
from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import EVERYWHERE, FloatCodec, floats_kernel, grid_kernel, values_kernel
from tritgguf.converter.quant.scaled_blocks import halves_above, quotient

SUB, SUBS = 32, 8
D, DMIN, SCALES, CODES = slice(0, 2), slice(2, 4), slice(4, 16), slice(16, 144)
SIXES, HIGHEST = 63, 15
# The steps to try: the span of a sub-block's values / 15, times these factors.
FACTORS = np.geomspace(0.85, 1.8, 16, dtype=np.float32)
ZERO, MOST = 8, 7  # for a known grid: the code of the value zero, and the largest distance of a code from it

Floats = npt.NDArray[np.float32]


class Q4K(FloatCodec):
    name = "q4_k"
    ggml_type = GGMLQuantizationType.Q4_K
    file_type = LlamaFileType.MOSTLY_Q4_K_M
    block = 256
    block_bytes = 144
    runs_on = EVERYWHERE
    values_kernel = values_kernel("q4_k_values")
    grid_levels = (3, 9)

    def encode(self, values: Float32Array) -> ByteArray:
        _require_range(float(np.abs(values).max(initial=0)))
        rows = np.ascontiguousarray(values)
        blocks: ByteArray = np.empty((len(rows), self.row_bytes(rows.shape[1])), np.uint8)
        if PACK_FLOATS(rows, rows.size // self.block, FACTORS, len(FACTORS), blocks) is None:
            with np.errstate(over="ignore", invalid="ignore"):  # 1 / step overflows below 1e-38
                blocks = _encoded(values.reshape(-1, SUBS, SUB)).reshape(blocks.shape)
        return blocks

    def pack_grid(self, codes: Codes, steps: Float32Array) -> ByteArray:
        """Store code · step for the given grid; two groups of 16 columns share a scale.

        Each block is encoded as floats or with codes symmetric around zero, whichever has the smaller squared error.
        Symmetric means dmin = 8 d and minimum = scale: zero stays exact, and all 63 scales can be tried.
        """
        levels = np.abs(codes)
        _require_range(float((levels.max(axis=2) * steps).max(initial=0)))
        blocks: ByteArray = np.empty((len(codes), self.block_bytes), np.uint8)
        if PACK_GRID(codes, steps, len(codes), FACTORS, len(FACTORS), blocks) is not None:
            return blocks
        values = (codes * steps[:, :, None]).reshape(-1, SUBS, SUB)
        with np.errstate(over="ignore", invalid="ignore"):  # an offset that overflows makes the error NaN
            ways = (_encoded(values), _even(levels.astype(np.float32), steps, values))
            errors = [
                lane_sums(np.square(self.decode(way).reshape(values.shape) - values).reshape(len(codes), -1, LANES))
                for way in ways
            ]
        return np.where((errors[1] < errors[0])[:, None], ways[1], ways[0])

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.dequantize(stored)


def _require_range(largest: float) -> None:
    if not largest <= SIXES * float(np.finfo(np.float16).max):
        raise TensorError(f"a value is {largest:g}, but q4_k ends near 4e6: store this tensor as f32")


def _encoded(subs: Floats) -> ByteArray:
    """Return the bytes of blocks of any values in the type's range, (n_blocks, 8, 32)."""
    wanted, zeros = _steps(subs)
    d, scales = _in_sixes(wanted)
    steps = d[:, None] * scales
    dmin, minima = _in_sixes(zeros * steps)
    offsets = (dmin[:, None] * minima)[:, :, None]
    codes = np.clip(np.rint(quotient(subs + offsets, steps[:, :, None])), 0, HIGHEST)
    return _stored(d, dmin, scales, minima, codes)


def _steps(subs: Floats) -> tuple[Floats, Floats]:
    """Return the step of least squared error per sub-block, and the (fractional) code of the value zero with it."""
    low, high = np.minimum(subs.min(axis=2), 0), np.maximum(subs.max(axis=2), 0)
    columns = np.ascontiguousarray(np.moveaxis(subs, 2, 0))  # one sub-block per column: numpy adds rows fastest
    best = [np.full(low.shape, np.inf, np.float32), np.zeros_like(low), np.zeros_like(low)]
    for factor in FACTORS:
        step = (high - low) / HIGHEST * factor
        lowest = np.clip(quotient(-low, step), 0, HIGHEST)
        scaled = columns * quotient(np.float32(1), step)
        for zero in (np.floor(lowest), lowest):  # the first stores zeros exactly, the second the lowest value
            nearest = np.clip(np.rint(scaled + zero), 0, HIGHEST) - zero
            error = np.square(nearest - scaled).sum(axis=0) * np.square(step)
            better = error < best[0]
            best = [np.where(better, new, old) for new, old in zip((error, step, zero), best, strict=True)]
    return _refined(columns, *best)


def _refined(columns: Floats, error: Floats, step: Floats, zero: Floats) -> tuple[Floats, Floats]:
    """Return step and zero from a linear fit to the codes that they give, or unchanged if the fit isn't better."""
    scaled = columns * quotient(np.float32(1), step)
    codes = np.clip(np.rint(scaled + zero), 0, HIGHEST)
    sums, sums_of_codes = columns.sum(axis=0), codes.sum(axis=0)
    spread = SUB * np.square(codes).sum(axis=0) - np.square(sums_of_codes)
    fit = quotient(SUB * (columns * codes).sum(axis=0) - sums * sums_of_codes, spread)
    fit_zero = quotient((fit * sums_of_codes - sums) / np.float32(SUB), fit)
    fit_error = np.square((codes - fit_zero) * fit - columns).sum(axis=0)
    better = (fit_error < error) & (fit > 0) & (fit_zero >= 0)
    return np.where(better, fit, step), np.where(better, fit_zero, zero)


def _in_sixes(values: Floats) -> tuple[Floats, Floats]:
    """Return an fp16 unit per block, and each value (zero or more) as a 6-bit multiple of it."""
    unit = halves_above(values.max(axis=1) / np.float32(SIXES))
    return unit, np.clip(np.rint(quotient(values, unit[:, None])), 0, SIXES)


def _even(levels: Floats, steps: Floats, values: Floats) -> ByteArray:
    """Return the bytes of blocks with codes symmetric around zero; `levels` are |codes|, (n_blocks, 16, 16)."""
    largest = (levels.max(axis=2) * steps).max(axis=1)
    # With this d the highest scale puts the block's largest level at code 4; lower scales put it at up to code 7.
    d = halves_above(largest / np.float32(4 * SIXES))
    scales = _nearest_scales(levels, steps, d)
    codes = np.clip(np.rint(quotient(values, (d[:, None] * scales)[:, :, None])), -MOST, MOST) + ZERO
    return _stored(d, ZERO * d, scales, scales, codes)


def _nearest_scales(levels: Floats, steps: Floats, d: Floats) -> Floats:
    """Return the scale of least squared error per sub-block; values of the same size in a group are counted once."""
    n_levels = int(levels.max(initial=1))
    sizes = np.arange(1, n_levels + 1, dtype=np.float32)
    counts = np.stack([(levels == size).sum(axis=2) for size in sizes]).astype(np.float32)
    counts = counts.reshape(n_levels, -1, SUBS, 2)
    values = (steps * sizes[:, None, None]).reshape(n_levels, -1, SUBS, 2)
    least: Floats = np.full(values.shape[1:3], np.inf, np.float32)
    scales: Floats = np.zeros_like(least)
    for scale in range(1, SIXES + 1):
        unit = (d * np.float32(scale))[:, None, None]
        nearest = unit * np.minimum(np.rint(values * quotient(np.float32(1), unit)), MOST)
        errors = (counts * np.square(nearest - values)).sum(axis=0)
        error = errors[..., 0] + errors[..., 1]
        better = error < least
        least, scales = np.where(better, error, least), np.where(better, np.float32(scale), scales)
    return scales


def _stored(d: Floats, dmin: Floats, scales: Floats, minima: Floats, codes: Floats) -> ByteArray:
    """Return the bytes of blocks; `scales` and `minima` are (n_blocks, 8), `codes` (n_blocks, 8, 32)."""
    stored = np.empty((len(d), Q4K.block_bytes), np.uint8)
    stored[:, D] = d.astype("<f2")[:, None].view(np.uint8)
    stored[:, DMIN] = dmin.astype("<f2")[:, None].view(np.uint8)
    pair = np.stack([scales, minima], axis=1).astype(np.uint8)  # (block, scale or minimum, sub-block)
    first, second = pair[..., :4], pair[..., 4:]
    stored[:, SCALES][:, :8] = (first | second >> np.uint8(4) << np.uint8(6)).reshape(len(d), -1)
    stored[:, SCALES][:, 8:] = second[:, 0] & np.uint8(15) | (second[:, 1] & np.uint8(15)) << np.uint8(4)
    digits = codes.astype(np.uint8).reshape(len(d), 4, 2, SUB)
    stored[:, CODES] = (digits[:, :, 0] | digits[:, :, 1] << np.uint8(4)).reshape(len(d), -1)
    return stored


PACK_FLOATS, PACK_GRID = floats_kernel("q4_k_floats"), grid_kernel("q4_k_grid")
CODEC = Q4K()
