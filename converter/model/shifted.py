"""A checkpoint's tensor plus a constant: GGUF's norms multiply by their weights, some models' by 1 + weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritgguf.converter.core.tensors import ByteArray, Float32Array, RowIndices, SourceTensor


@dataclass(frozen=True)
class ShiftedTensor(SourceTensor):
    """The tensor `stored`, named and shaped as it, with `plus` added to each value in float32."""

    name: str
    shape: tuple[int, ...]
    stored: SourceTensor
    plus: float
    dtype: str = "F32"

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values: Float32Array = self.stored.read(rows) + np.float32(self.plus)
        return values

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)
