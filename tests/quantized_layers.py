"""Single linear layers as GPTQ, AutoRound and MLX pack them: the cases of golden/quantized, and writers in plain numpy.

The writers follow the description of the formats (docs/formats.md) without the converter. golden/quantized holds what
the packages themselves write and compute for the same integers (golden/record_quantized_layers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.uint8]
Floats = NDArray[np.float32]
N_COLUMNS = 128


@dataclass(frozen=True)
class Layer:
    """One case: `minus_one` is how zero points are stored, `symmetric` that they are 2^(bits - 1).

    `group` -1 means whole rows. `signed`: scales of either sign. `bias_per_scale` is MLX's bias over its scale; None
    means a bias of its own.
    """

    bits: int
    group: int
    symmetric: bool = True
    minus_one: bool = True
    signed: bool = False
    bias_per_scale: int | None = None
    dtype: str = "F16"
    least: int = 0  # of the integers
    least_zero: int = 1
    scale_bits: int = 8  # significant ones: with 11, only float32 holds all multiples
    n_rows: int = 32

    def n_groups(self, n_columns: int) -> int:
        """Return the number of groups in a row."""
        return 1 if self.group == -1 else n_columns // self.group


GPTQ: Mapping[str, Layer] = {
    "v1": Layer(2, 64, n_rows=96),
    "v2": Layer(2, 64, minus_one=False),
    "rows": Layer(2, -1),
    "zeros-v1": Layer(2, 32, symmetric=False, least_zero=0, n_rows=96),
    "zeros-v2": Layer(2, 32, symmetric=False, least_zero=0, minus_one=False),
    "3-bits-v1": Layer(3, 64, symmetric=False, least_zero=0, n_rows=96),
    "3-bits-v2": Layer(3, 64, symmetric=False, least_zero=0, minus_one=False),
    "4-bits": Layer(4, 32),
    "4-bits-zeros-v1": Layer(4, 32, symmetric=False, least_zero=0),
    "8-bits": Layer(8, 64),
}
AUTO_ROUND: Mapping[str, Layer] = {
    "auto_gptq": Layer(2, 64, signed=True, n_rows=96),
    "plain": Layer(2, 64, signed=True, minus_one=False),
    "zeros-auto_gptq": Layer(2, 32, symmetric=False),
    "zeros-plain": Layer(2, 32, symmetric=False, minus_one=False, n_rows=96),
    "3-bits": Layer(3, 32, signed=True),
    "4-bits": Layer(4, 64, signed=True, minus_one=False),
    "5-bits": Layer(5, 64, signed=True),
    "6-bits": Layer(6, 64, minus_one=False),
    "7-bits": Layer(7, 64, symmetric=False),
    "8-bits": Layer(8, 64),
}
MLX: Mapping[str, Layer] = {
    "bonsai": Layer(2, 64, signed=True, bias_per_scale=-1),
    "auto-round": Layer(2, 128, signed=True, bias_per_scale=-2),
    "bf16": Layer(2, 32, bias_per_scale=-1, dtype="BF16"),
    "2-bits": Layer(2, 64),
    "2-bits-zeros": Layer(2, 64, symmetric=False),
    "3-bits": Layer(3, 64),
    "4-bits": Layer(4, 32, dtype="BF16"),
    "5-bits": Layer(5, 64),
    "6-bits": Layer(6, 64, dtype="F32"),
    "8-bits": Layer(8, 128),
}
PACKAGES = {"gptq": GPTQ, "auto_round": AUTO_ROUND, "mlx": MLX}


def shape_of(layer: Layer) -> tuple[int, int]:
    """Return rows and columns of a recorded case."""
    return layer.n_rows, N_COLUMNS


def integers(name: str, layer: Layer, shape: tuple[int, int]) -> Integers:
    """Return seeded integers of the layer's width, (rows, columns)."""
    return _random(name).integers(layer.least, 1 << layer.bits, shape).astype(np.uint8)


def zeros(name: str, layer: Layer, shape: tuple[int, int]) -> Integers:
    """Return the zero points, (rows, groups)."""
    groups = (shape[0], layer.n_groups(shape[1]))
    if layer.symmetric:
        return np.full(groups, 1 << layer.bits - 1, np.uint8)
    return _random(f"{name}/zeros").integers(layer.least_zero, 1 << layer.bits, groups).astype(np.uint8)


def scales(name: str, layer: Layer, shape: tuple[int, int]) -> Floats:
    """Return fp16 scales, (rows, groups); those of eight significant bits are bf16 values too."""
    random, groups = _random(f"{name}/scales"), (shape[0], layer.n_groups(shape[1]))
    steps = 1 << layer.scale_bits - 1
    found = random.integers(steps, 2 * steps, groups) / steps * 2.0 ** (-3 - layer.bits)
    signs = np.where(random.random(groups) < 0.5, -1, 1) if layer.signed else 1
    return (found * signs).astype(np.float32)


def per_column(values: NDArray[Any], n_columns: int) -> Floats:
    """Repeat what is given per group, (rows, groups), for each column."""
    return np.repeat(values, n_columns // values.shape[1], axis=1).astype(np.float32)


def weights(name: str, layer: Layer, shape: tuple[int, int]) -> Floats:
    """Return what the layer computes with where a weight is (integer - zero point) · scale."""
    zero, scale = (per_column(make(name, layer, shape), shape[1]) for make in (zeros, scales))
    return (integers(name, layer, shape).astype(np.float32) - zero) * scale


def _random(label: str) -> np.random.Generator:
    return np.random.default_rng(list(label.encode()))


# --- writers -----------------------------------------------------------------------------------------------------


def packed(rows: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Return the words, (n_rows, n_columns · bits / 32), of integers (n_rows, n_columns): a stream of bits per row."""
    single = (rows.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8) & 1).reshape(len(rows), -1)
    return np.packbits(single, axis=1, bitorder="little").view("<u4")


def gptq_entries(codes: Integers, zero_points: Integers, layer: Layer) -> dict[str, NDArray[Any]]:
    """Return qweight, qzeros and g_idx of integers (rows, columns) and zero points (rows, groups)."""
    n_columns = codes.shape[1]
    ones = packed(np.ones_like(zero_points.T), layer.bits)
    words = packed(zero_points.T, layer.bits)
    if layer.minus_one and 32 % layer.bits:
        words = packed(zero_points.T.astype(np.int16) - 1, layer.bits)
    elif layer.minus_one:  # GPTQModel subtracts from whole words: a zero point of 0 borrows from the next one
        words = words - ones
    group = n_columns if layer.group == -1 else layer.group
    return {
        "qweight": np.ascontiguousarray(packed(codes, layer.bits).T).view(np.int32),
        "qzeros": words.view(np.int32),
        "g_idx": (np.arange(n_columns) // group).astype(np.int32),
    }
