"""The kinds of data that flow through a conversion: tensors on disk, and codes with scales."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.kernels import KINDS, Kernel
from tritgguf.converter.core.system import ByteArray as ByteArray
from tritgguf.converter.core.system import advise

Float32Array: TypeAlias = npt.NDArray[np.float32]
Codes: TypeAlias = npt.NDArray[np.int8]
RowIndices: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

CHUNK_VALUES = 1 << 19  # two megabytes of float32: they stay in cache


class Floats(NamedTuple):
    """Floats as they are stored: words, unsigned and contiguous, of shape (n_rows, n_columns), of BF16, F16 or F32."""

    words: Words
    dtype: str

    @property
    def kind(self) -> int:
        """What kernels call the dtype."""
        return KINDS.index(self.dtype)

    @classmethod
    def of(cls, values: Float32Array) -> Floats:
        """Return float32 rows as such."""
        return cls(np.ascontiguousarray(values).view(FLOAT_DTYPES["F32"].words), "F32")


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

    def floats(self, rows: slice | RowIndices) -> Floats:
        """Return those rows as they are stored, if they are stored as floats, unchecked, else as `read` does."""
        return Floats.of(self.read(rows))

    @property
    def ggml_type(self) -> GGMLQuantizationType | None:
        """The type of its bytes where it is a tensor of a GGUF file, else None."""
        return None

    @property
    def kernel_packing(self) -> str | None:
        """Which of PACKINGS `read_packed` returns, None for a tensor whose bytes no kernel reads."""
        return None

    def read_bytes(self, rows: slice | RowIndices) -> ByteArray:
        """Return those rows of a tensor with a `ggml_type` as they are stored, shape (n_rows, row bytes)."""
        raise NotImplementedError(f"{self.name} is {self.dtype}, no tensor of a GGUF file")

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        """Return those rows as the codes and scales that are stored, None where values are stored."""
        return None

    def read_packed(self, rows: slice | RowIndices) -> PackedRows | None:
        """Return those rows as they are stored, unchecked, for kernels; None without a `kernel_packing`."""
        return None

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        """Return the parts of mapped files that hold those rows, with whatever lies between."""
        return []

    def chunks(self) -> Iterator[tuple[slice, Float32Array]]:
        """Yield the tensor's rows and their values, as `row_chunks` does, without keeping its pages in memory."""
        for rows in row_chunks(self.shape):
            self.read_now(rows)
            yield rows, self.read(rows)
            self.evict(rows)

    def prefetch(self, rows: slice | RowIndices) -> None:
        """Tell the system that those rows are read next."""
        for part in self.on_disk(rows):
            advise(part, "ahead")

    def read_now(self, rows: slice | RowIndices) -> None:
        """Tell the system that those rows are read now."""
        for part in self.on_disk(rows):
            advise(part, "now")

    def evict(self, rows: slice | RowIndices) -> None:
        """Tell the system that those rows are done with."""
        for part in self.on_disk(rows):
            advise(part, "done")

    def fitted(self, shape: tuple[int, ...]) -> SourceTensor | None:
        """Return the tensor in the shape that the model has it in, or None where it can't be that tensor."""
        return self if self.shape == shape else None


@dataclass(frozen=True)
class CodedTensor(SourceTensor):
    """A tensor that lies on a grid as its model computes with it, a ternary one or finer, made of what is `stored`.

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

    @property
    def levels(self) -> int:
        """How many levels its codes have, evenly spaced around zero."""
        return 3

    @abstractmethod
    def scales(self, rows: slice) -> Float32Array:
        """Return the scales of those rows, shape (n_rows, row length / group)."""

    def scale_chunks(self, first: int) -> Iterator[Float32Array]:
        """Yield all scales, those of some rows at a time, the first time about `first`, and keep no pages in memory."""
        for rows in row_chunks((self.shape[0], self.shape[-1] // self.group), first=first):
            yield self.scales(rows)

    @abstractmethod
    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        """Return those rows as codes and scales; raise TensorError where a code is invalid."""

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.read_codes(rows).dequantize()

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)


@dataclass(frozen=True)
class PackedTensor(CodedTensor):
    """A coded tensor whose packing, one of PACKINGS, kernels know."""

    packing: ClassVar[str]

    @property
    def kernel_packing(self) -> str:
        return self.packing

    @abstractmethod
    def read_packed(self, rows: slice | RowIndices) -> PackedRows:
        """Return those rows as they are stored, unchecked."""


@dataclass(frozen=True)
class CodedRows:
    """Coded rows: `codes` int8, (n_rows, n_columns), in {-1, 0, 1} for all but grids of more levels; `scales` float32,
    (n_rows, n_columns / group).

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
        values: Float32Array = np.empty(self.codes.shape, np.float32)
        groups = values.reshape(-1, self.group)
        codes, scales = np.ascontiguousarray(self.codes).reshape(groups.shape), np.ascontiguousarray(self.scales)
        if DEQUANTIZE(codes, scales.reshape(-1), *groups.shape, groups) is None:
            np.multiply(codes, scales.reshape(-1, 1), out=groups)
        return values


@dataclass(frozen=True)
class PackedRows:
    """Ternary rows as they are stored, for kernels: those `numbers` of `stored`, uint8 (n_stored, bytes of a row).

    `packing` is of PACKINGS. "codes": a byte is a code. "base-3": a byte's base-3 digits, lowest first, are four
    neighbours' codes + 1. "four rows": bits 2i and 2i + 1 of a byte in row r are the code + 1 of row r + i · n_stored.
    """

    packing: str
    stored: ByteArray
    numbers: RowIndices
    n_columns: int
    scales: Float32Array
    group: int

    @classmethod
    def of(cls, rows: CodedRows) -> PackedRows:
        """Return codes as such."""
        numbers, codes = np.arange(len(rows.codes)), np.ascontiguousarray(rows.codes).view(np.uint8)
        return cls("codes", codes, numbers, rows.codes.shape[1], rows.scales, rows.group)


def row_numbers(rows: slice | RowIndices, n_rows: int) -> RowIndices:
    """Return the numbers of some of `n_rows` rows."""
    return np.arange(*rows.indices(n_rows)) if isinstance(rows, slice) else np.ascontiguousarray(rows)


DEQUANTIZE = Kernel("dequantize", np.int8, np.float32, int, int, np.float32)


def span(rows: slice | RowIndices, n_rows: int) -> slice:
    """Return the narrowest slice of `n_rows` rows that holds all of `rows`."""
    if isinstance(rows, slice):
        return slice(*rows.indices(n_rows)[:2])
    return slice(int(rows.min(initial=n_rows)), int(rows.max(initial=-1)) + 1)


def row_chunks(
    shape: tuple[int, ...], rows: slice = slice(None), *, n_values: int | None = None, first: int | None = None
) -> Iterator[slice]:
    """Yield slices over the rows of a tensor, or some of them, of about CHUNK_VALUES or `n_values` values each.

    `first` is how many the first has. A one-dimensional tensor is one row.
    """
    start, end, _ = rows.indices(math.prod(shape[:-1]))
    wanted = first or n_values or CHUNK_VALUES
    while start < end:
        stop = min(start + max(1, wanted // max(shape[-1], 1)), end)
        yield slice(start, stop)
        start, wanted = stop, n_values or CHUNK_VALUES
