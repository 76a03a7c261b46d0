"""Blocks of 256 values, as in Q6_K and Q3_K: signed codes, one integer scale per 16 values, one fp16 d per block.

A value is d * scale * code. Codes reach from `lowest_code` (-32 or -4) to -lowest_code - 1, scales likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.errors import TensorError

SUB = 16  # values that share a scale
SUBS = 16  # sub-blocks that share d
SMALLEST = np.float32(2.0**-24)  # fp16's smallest value; all codes are 0 in sub-blocks of smaller values
D_FACTORS = np.linspace(1, 2, 32, dtype=np.float32)  # times the least possible d of a known grid: what is tried
MOST_MULTIPLES = 8  # codes to try per level of a known grid

Codes = npt.NDArray[np.int8]
Halves = npt.NDArray[np.float16]


def best_scales(columns: Float32Array, lowest_code: int, largest_codes: Float32Array) -> Float32Array:
    """Return the scale of least squared error per sub-block, (n_columns,).

    `columns` is (16, n_columns), one sub-block per column, since numpy adds rows fastest. Each of `largest_codes` is
    tried as the code of the largest value. For given codes the best scale is sum(x * code) / sum(code**2), and lowers
    the squared error by sum(x * code)**2 / sum(code**2).
    """
    peaks = np.take_along_axis(columns, np.abs(columns).argmax(axis=0)[None], axis=0)[0]
    # There is one more negative code than positive ones: the largest value gets the negative code.
    inverse = quotient(np.float32(-1), np.where(np.abs(peaks) < SMALLEST, np.float32(0), peaks))
    scales: Float32Array = np.zeros_like(peaks)
    gains: Float32Array = np.zeros_like(peaks)
    for largest_code in largest_codes:
        codes = np.rint(columns * (inverse * largest_code))
        np.clip(codes, lowest_code, -lowest_code - 1, out=codes)
        products = (columns * codes).sum(axis=0)
        scale = quotient(products, np.square(codes, out=codes).sum(axis=0))
        gain = scale * products
        better = ~(gain <= gains)  # true for NaN too: the caller checks for it
        scales, gains = np.where(better, scale, scales), np.where(better, gain, gains)
    return scales


def block_scales(scales: Float32Array, lowest: int) -> Halves:
    """Return d per block, fp16 (n_blocks,): the scale of largest magnitude / `lowest`, rounded away from zero.

    With this rounding no integer scale is clipped, and d is 0 only in blocks of zeros. `scales` is (n_blocks, 16).
    """
    exact = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)[:, 0] / np.float32(lowest)
    nearest: Halves = exact.astype(np.float16)
    away: Halves = np.nextafter(nearest, np.copysign(np.float16(np.inf), nearest))
    return np.where(np.abs(nearest.astype(np.float32)) < np.abs(exact), away, nearest)


def encoded(
    columns: Float32Array, lowest_code: int, lowest_scale: int, largest_codes: Float32Array, limit: str
) -> tuple[Halves, Codes, Codes]:
    """Return d (n_blocks,), scales (n_blocks, 16) and codes (n_blocks, 256) of any floats, (16, n_columns).

    `limit` tells where the type's range ends, for the TensorError that is raised beyond it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = best_scales(columns, lowest_code, largest_codes).reshape(-1, SUBS)
        d = block_scales(wanted, lowest_scale)
    if not np.isfinite(d).all():
        raise too_large(columns, limit)
    steps = d.astype(np.float32)[:, None]
    scales = np.clip(np.rint(quotient(wanted, steps)), lowest_scale, -lowest_scale - 1)
    codes = np.clip(np.rint(quotient(columns, (steps * scales).reshape(-1))), lowest_code, -lowest_code - 1)
    return d, scales.astype(np.int8), codes.astype(np.int8).T.reshape(len(d), -1)


def too_large(values: Float32Array, limit: str) -> TensorError:
    """Return the error of values beyond a type's range, which `limit` describes."""
    return TensorError(f"a value is {np.abs(values).max():g}, but {limit}: store this tensor as f32")


def fitted(grid_codes: Codes, steps: Float32Array, highest_code: int, lowest_scale: int) -> tuple[Halves, Codes, Codes]:
    """Return d, scales and codes as `encoded` does, with the least squared error for values known to be code * step.

    `grid_codes` is (n_blocks, 16, 16), `steps` (n_blocks, 16). The type can store a sub-block's codes times any m that
    its range of codes allows. Then m * scale * d has to approximate the step, which offers more choices than scale * d.
    Several d are tried. Scales are negative, since there is one more of them. Raises TensorError if d overflows fp16.
    """
    codes = grid_codes.astype(np.float32)
    most = np.maximum(highest_code // np.maximum(np.abs(codes).max(axis=2), 1), 1)
    weights = np.square(codes).sum(axis=2)
    limit = np.float32(-lowest_scale)
    least_d = np.maximum((steps / (limit * most)).max(axis=1), np.where((steps * weights).any(axis=1), SMALLEST, 0))
    best = _Fit(np.full(len(steps), np.inf), halves_above(least_d), np.zeros_like(steps), np.ones_like(steps))
    with np.errstate(over="ignore", invalid="ignore"):
        for factor in D_FACTORS:
            best = best.better(_fit(halves_above(least_d * factor), steps, weights, most, limit))
    if not np.isfinite(best.d).all():
        raise out_of_range(steps)
    signed = -codes * best.multiples[:, :, None]
    return best.d.astype(np.float16), (-best.scales).astype(np.int8), signed.astype(np.int8).reshape(len(codes), -1)


def out_of_range(steps: Float32Array) -> TensorError:
    """Return the error of a grid whose steps are too large for a type."""
    return TensorError(f"the levels are {steps.max():g} apart, out of this type's range: store this tensor as f32")


@dataclass(frozen=True)
class _Fit:
    """d per block, the integer scale and multiple per sub-block, and the squared error per block."""

    errors: npt.NDArray[np.float64]
    d: Float32Array
    scales: Float32Array
    multiples: Float32Array

    def better(self, other: _Fit) -> _Fit:
        wins = other.errors < self.errors
        column = wins[:, None]
        return _Fit(
            np.where(wins, other.errors, self.errors),
            np.where(wins, other.d, self.d),
            np.where(column, other.scales, self.scales),
            np.where(column, other.multiples, self.multiples),
        )


def _fit(d: Float32Array, steps: Float32Array, weights: Float32Array, most: Float32Array, limit: np.float32) -> _Fit:
    """Choose the scale and multiple of each sub-block for given d, (n_blocks,)."""
    least: Float32Array = np.full(steps.shape, np.inf, np.float32)
    scales: Float32Array = np.zeros_like(steps)
    multiples: Float32Array = np.ones_like(steps)
    fewest = np.maximum(np.ceil(quotient(steps, d[:, None] * limit)), 1)
    for further in range(MOST_MULTIPLES):
        multiple = np.minimum(fewest + further, most)
        unit = d[:, None] * multiple
        scale = np.clip(np.rint(quotient(steps, unit)), 0, limit)
        error = np.square(unit * scale - steps)
        better = error < least
        least = np.where(better, error, least)
        scales, multiples = np.where(better, scale, scales), np.where(better, multiple, multiples)
    errors = (least * weights).astype(np.float64)
    while errors.shape[1] > 1:  # in halves, as the kernel does
        errors = errors[:, : errors.shape[1] // 2] + errors[:, errors.shape[1] // 2 :]
    return _Fit(errors[:, 0], d, scales, multiples)


def halves_above(values: Float32Array) -> Float32Array:
    """Round up to fp16 values; return them as float32."""
    with np.errstate(over="ignore"):
        nearest = (values + np.float32(0)).astype(np.float16)  # -0 becomes 0
        above = np.where(nearest.astype(np.float32) < values, np.nextafter(nearest, np.float16(np.inf)), nearest)
    rounded: Float32Array = above.astype(np.float32)
    return rounded


def quotient(dividends: Float32Array | np.float32, divisors: Float32Array) -> Float32Array:
    """Return dividends / divisors, or 0 if the divisor is 0."""
    with np.errstate(over="ignore", invalid="ignore"):  # of values near the ends of float32
        return np.where(divisors == 0, np.float32(0), dividends / np.where(divisors == 0, np.float32(1), divisors))
