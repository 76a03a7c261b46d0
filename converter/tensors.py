"""The kinds of data that flow through a conversion: tensors on disk, and ternary codes with scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
Codes: TypeAlias = npt.NDArray[np.int8]
RowIndices: TypeAlias = npt.NDArray[np.int64]

CHUNK_VALUES = 1 << 18  # a megabyte of float32 stays in a core's cache


class SourceTensor(ABC):
    """A tensor on disk, read some rows at a time; a one-dimensional tensor is one row.

    `dtype` is how its values are spelled on disk: `BF16`, `F16`, `F32`, or the name of a packing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Its size on disk."""

    @abstractmethod
    def read(self, rows: slice | RowIndices) -> Float32Array:
        """Return those rows as float32, shape (n_rows, row length); raise TensorError if one is NaN or Inf."""

    def fitted(self, shape: tuple[int, ...]) -> SourceTensor | None:
        """Return the tensor in the shape that the model has it in, or None where it can't be that tensor."""
        return self if self.shape == shape else None


@dataclass(frozen=True)
class CodedTensor(SourceTensor):
    """A tensor that is ternary as its model computes with it, made of what is `stored`.

    `shape` is the model's, `group` neighbouring columns share one scale.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    group: int
    stored: SourceTensor

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    @abstractmethod
    def scales(self) -> Float32Array:
        """Return every scale, shape (n_rows, row length / group)."""

    @abstractmethod
    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        """Return those rows as codes and scales; raise TensorError where a code is invalid."""

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.read_codes(rows).dequantize()


@dataclass(frozen=True)
class CodedRows:
    """Ternary rows: `codes` int8 in {-1, 0, 1}, (n_rows, n_columns); `scales` float32, (n_rows, n_columns / group).

    A weight is `code * scale` of the group of `group` neighbouring columns it lies in.
    """

    codes: Codes
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


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices over the rows of a tensor, each of about a megabyte of float32; a 1-D tensor is one row."""
    n_rows = int(np.prod(shape[:-1]))
    step = max(1, CHUNK_VALUES // max(shape[-1], 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
