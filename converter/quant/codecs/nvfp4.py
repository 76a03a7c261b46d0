"""NVFP4: 64 values as 4-bit floats (0, 0.5, 1, 1.5, 2, 3, 4, 6 and negative), a scale per 16 (4.5 bits per weight).

The scales, four bytes at a block's start, are unsigned 8-bit floats of 4 exponent and 3 fraction bits, 2^-9 to 448.
Of each 16 values, byte m (0..7) holds value m in its low nibble and m+8 in its high one; bit 3 is the sign. The
layout is ggml's `block_nvfp4`. Scales below 2^-6 have fewer fraction bits, so small weights are stored less exactly.
"""

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, Codes, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import FloatCodec
from tritgguf.converter.quant.known_grid import pair_sums

SUB, SUBS = 16, 4
MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)  # in halves
MIDPOINTS = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
NEGATIVE = np.uint8(8)
# The value of half a unit for each scale byte, 0 to 126, ascending.
ALL_HALVES = quants.NVFP4.ue4m3_to_fp32(np.arange(256, dtype=np.uint16).astype(np.uint8)).astype(np.float32)
HALVES = ALL_HALVES[:127].copy()
LARGEST = float(HALVES[-1] * MAGNITUDES[-1])

Floats = npt.NDArray[np.float32]


class NVFP4(FloatCodec):
    name = "nvfp4"
    ggml_type = GGMLQuantizationType.NVFP4
    file_type = LlamaFileType.MOSTLY_NVFP4
    block = 64
    block_bytes = 36
    runs_on = ("cpu", "cuda", "vulkan")
    rows_read_on = ("cpu", "vulkan")
    grid_levels = (3, 9)

    def encode(self, values: Float32Array) -> ByteArray:
        groups = np.ascontiguousarray(values).reshape(-1, SUB)
        _require_range(float(np.abs(groups).max(initial=0)))
        blocks: ByteArray = np.empty((len(values), self.row_bytes(values.shape[1])), np.uint8)
        if PACK_FLOATS(groups, len(groups), blocks) is None:
            largest = np.abs(groups).max(axis=1)
            scales = _best_scales(groups, None, largest / np.float32(12), largest / np.float32(6))
            blocks = _stored(groups, scales).reshape(blocks.shape)
        return blocks

    def pack_grid(self, codes: Codes, steps: Float32Array) -> ByteArray:
        """Store code · step for the given grid: MAGNITUDES offers several multiples per level, so try many scales."""
        levels = np.abs(codes).reshape(-1, SUB)
        sizes = np.arange(1, int(levels.max(initial=1)) + 1, dtype=np.float32)
        _require_range(float(steps.max(initial=0) * sizes[-1]))
        blocks: ByteArray = np.empty((len(codes), self.block_bytes), np.uint8)
        if PACK_GRID(codes, steps, len(levels), blocks) is not None:
            return blocks
        levels, steps = levels.astype(np.float32), steps.reshape(-1)
        counts = np.stack([(levels == size).sum(axis=1) for size in sizes], axis=1).astype(np.float32)
        values = steps[:, None] * sizes
        scales = _best_scales(values, counts, steps * levels.max(axis=1) / np.float32(12), steps)
        return _stored(codes.reshape(-1, SUB) * steps[:, None], scales).reshape(len(codes), -1)

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.dequantize(stored)

    def dequantize(self, stored: ByteArray) -> Float32Array:
        n_blocks = stored.size // self.block_bytes
        values: Float32Array = np.empty((len(stored), n_blocks * self.block // len(stored)), np.float32)
        if VALUES(np.ascontiguousarray(stored), n_blocks, ALL_HALVES, values) is None:
            values = quants.dequantize(stored, self.ggml_type)
        return values


def _require_range(largest: float) -> None:
    if not largest <= LARGEST * (1 + 2**-4):  # half a step of the scale beyond the type's range still rounds into it
        raise TensorError(f"a value is {largest:g}, but nvfp4 ends at {LARGEST:g}: store this tensor as f16 or f32")


def _best_scales(values: Floats, counts: Floats | None, least: Floats, most: Floats) -> ByteArray:
    """Return each group's scale byte of least squared error, among those from just below `least` to just above `most`.

    `values` is (n_groups, n); `counts`, of the same shape, tells how often each value occurs in its group, None that
    they are the group's 16 values. `least` and `most` are (n_groups,).
    """
    first = np.maximum(np.searchsorted(HALVES, least).astype(np.int64) - 1, 0)
    last = np.minimum(np.searchsorted(HALVES, most).astype(np.int64) + 1, len(HALVES) - 1)
    best: npt.NDArray[np.int64] = first.copy()
    errors: Floats = np.full(len(values), np.inf, np.float32)
    magnitudes = np.abs(values)
    for further in range(int((last - first).max(initial=0)) + 1):
        candidate = np.minimum(first + further, last)
        unit = HALVES[candidate][:, None]
        nearest = unit * MAGNITUDES[_nearest(magnitudes, unit)]
        errors_here = np.square(nearest - magnitudes)
        error = pair_sums(errors_here) if counts is None else _sums_in_order(counts * errors_here)
        better = error < errors
        best, errors = np.where(better, candidate, best), np.where(better, error, errors)
    return best.astype(np.uint8)


def _sums_in_order(rows: Floats) -> Floats:
    sums: Floats = rows[:, 0].copy()
    for column in range(1, rows.shape[1]):
        sums += rows[:, column]
    return sums


def _nearest(magnitudes: Floats, unit: Floats) -> ByteArray:
    with np.errstate(over="ignore"):
        scaled = magnitudes / np.where(unit == 0, np.float32(np.inf), unit)
    return np.searchsorted(MIDPOINTS, scaled).astype(np.uint8)


def _stored(groups: Floats, scales: ByteArray) -> ByteArray:
    codes = _nearest(np.abs(groups), HALVES[scales][:, None])
    codes |= NEGATIVE * ((groups < 0) & (codes > 0))
    packed = codes[:, :8] | codes[:, 8:] << np.uint8(4)
    blocks = (scales.reshape(-1, SUBS), packed.reshape(-1, SUBS * 8))
    return np.concatenate(blocks, axis=1)


PACK_FLOATS = Kernel("nvfp4_floats", np.float32, int, np.uint8)
PACK_GRID = Kernel("nvfp4_grid", np.int8, np.float32, int, np.uint8)
VALUES = Kernel("nvfp4_values", np.uint8, int, np.float32, np.float32)
CODEC = NVFP4()
