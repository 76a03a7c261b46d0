"""The two kinds of data that flow through a conversion: floats as they lie on disk, and ternary codes with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
RowIndices: TypeAlias = npt.NDArray[np.int64]


class FloatRows(Protocol):
    """A tensor of floats on disk, read some rows at a time.

    A one-dimensional tensor is one row. `row_bytes` is the size of a row on disk.
    """

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """`BF16`, `F16` or `F32`, as safetensors spells it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, rows: slice | RowIndices) -> Float32Array:
        """Return those rows as float32, shape (n_rows, row length); raise TensorError if one is NaN or Inf."""
        ...


@dataclass(frozen=True)
class CodedRows:
    """Ternary rows: `codes` int8 in {-1, 0, 1}, (n_rows, n_columns); `scales` float32, (n_rows, n_columns / group).

    A weight is `code * scale` of the group of `group` neighbouring columns it lies in.
    """

    codes: npt.NDArray[np.int8]
    scales: Float32Array
    group: int

    def __post_init__(self) -> None:
        n_rows, n_columns = self.codes.shape
        if n_columns % self.group or self.scales.shape != (n_rows, n_columns // self.group):
            raise ValueError(f"scales {self.scales.shape} don't fit codes {self.codes.shape} in groups of {self.group}")

    def dequantize(self) -> Float32Array:
        """Return the weights as float32, shape (n_rows, n_columns)."""
        n_rows, n_columns = self.codes.shape
        grouped = self.codes.reshape(n_rows, -1, self.group).astype(np.float32)
        return (grouped * self.scales[:, :, None]).reshape(n_rows, n_columns)
