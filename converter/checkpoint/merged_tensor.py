"""A tensor with a LoRA adapter's update merged into it, computed as its rows are read.

The merged weight is W + scaling · (B A), in float32: the products are added in order of the rank, then scaled, then
added to W. So the values are the same on every machine and however the rows are cut. PEFT's merge_and_unload()
computes the same in float32 and rounds to the checkpoint's dtype afterwards
(https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/layer.py); here nothing is rounded to bf16 or fp16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import ByteArray, Float32Array, RowIndices, SourceTensor, row_chunks, row_numbers
from tritgguf.converter.errors import TensorError


@dataclass(frozen=True)
class Factor:
    """One of the two matrices of an update; `turned` if the adapter stores it transposed."""

    stored: StoredTensor
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1] if self.turned else self.stored.shape

    def rows(self, rows: slice | RowIndices) -> Float32Array:
        """Return rows, float32 and contiguous; raise TensorError if a value is NaN or Inf."""
        self.stored.read_now(slice(None))
        found = self.stored.read(slice(None)).T[rows] if self.turned else self.stored.read(rows)
        return np.ascontiguousarray(found)


@dataclass(frozen=True)
class MergedTensor(SourceTensor):
    """A float tensor plus `scaling` · (`left` · `right`), (n_rows, rank) times (rank, n_columns).

    `magnitude`, of DoRA, is the norm that each row gets afterwards. `left` None is a single 1: a bias gets `right`.
    """

    base: SourceTensor
    left: Factor | None
    right: Factor
    scaling: float
    magnitude: StoredTensor | None = None
    dtype = "F32"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.base.shape

    @property
    def parts(self) -> list[StoredTensor]:
        """The adapter's tensors."""
        factors = [factor.stored for factor in (self.left, self.right) if factor is not None]
        return factors if self.magnitude is None else [*factors, self.magnitude]

    @property
    def n_bytes(self) -> int:
        return self.base.n_bytes

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.base.on_disk(rows)

    def require_unchanged(self) -> None:
        for tensor in (self.base, *self.parts):
            tensor.require_unchanged()

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values = np.ascontiguousarray(self.base.read(rows))
        right = self.right.rows(slice(None)).reshape(-1, values.shape[1])
        left = np.ones((1, 1), np.float32) if self.left is None else self.left.rows(rows)
        for some in row_chunks(values.shape):
            add_product(left[some], right, np.float32(self.scaling), values[some])
        if self.magnitude is not None:
            norms = np.sqrt(np.square(values, dtype=np.float64).sum(axis=1)).astype(np.float32)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                values *= (self.magnitude.read(slice(None))[0][rows] / norms)[:, None]
        if not np.isfinite(values).all():
            n_rows = math.prod(self.shape[:-1])
            row = row_numbers(rows, n_rows)[np.argwhere(~np.isfinite(values))[0][0]]
            raise TensorError(f"{self.name}: row {row} isn't finite with the adapter merged: the adapter is broken")
        return values


def add_product(left: Float32Array, right: Float32Array, scaling: np.float32, values: Float32Array) -> None:
    """Add scaling · (left · right) to `values`, (n_rows, n_columns), in place."""
    n_rows, rank = left.shape
    if ADD_PRODUCT(left, right, n_rows, rank, right.shape[1], float(scaling), values) is not None:
        return
    sums = np.zeros_like(values)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what isn't finite
        for place in range(rank):
            sums += left[:, place, None] * right[place]
        values += sums * scaling


ADD_PRODUCT = Kernel("add_product", np.float32, np.float32, int, int, int, float, np.float32)
