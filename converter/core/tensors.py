"""The data of a conversion: tensors on disk, stored floats, and rows of codes with scales."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.kernels import KINDS, Kernel
from tritgguf.converter.core.rows import RowIndices as RowIndices
from tritgguf.converter.core.rows import row_chunks as row_chunks
from tritgguf.converter.core.rows import row_numbers as row_numbers
from tritgguf.converter.core.rows import span as span
from tritgguf.converter.core.system import ByteArray as ByteArray
from tritgguf.converter.core.system import advise, require_unchanged

Float32Array: TypeAlias = npt.NDArray[np.float32]
Codes: TypeAlias = npt.NDArray[np.int8]
Words: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


class Floats(NamedTuple):
    """Floats as they are stored: contiguous unsigned words, (n_rows, n_columns), that hold BF16, F16 or F32 values."""

    words: Words
    dtype: str

    @property
    def kind(self) -> int:
        """The dtype's number in kernels."""
        return KINDS.index(self.dtype)

    @classmethod
    def of(cls, values: Float32Array) -> Floats:
        """Return float32 rows, (n_rows, n_columns), as stored floats."""
        return cls(np.ascontiguousarray(values).view(FLOAT_DTYPES["F32"].words), "F32")


class SourceTensor(ABC):
    """A tensor on disk, read some rows at a time; a one-dimensional tensor is one row.

    `dtype` is the type of its values on disk: `BF16`, `F16`, `F32`, or the name of a packing or of a GGUF type.
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
        """Return the rows as float32, (n_rows, n_columns); raise TensorError if a value is NaN or Inf."""

    def floats(self, rows: slice | RowIndices) -> Floats:
        """Return the rows as they are stored, without the check for NaN and Inf; as float32 if they aren't floats."""
        return Floats.of(self.read(rows))

    @property
    def ggml_type(self) -> GGMLQuantizationType | None:
        """The GGUF type of its bytes; None unless the tensor is in a GGUF file."""
        return None

    @property
    def foreign(self) -> bool:
        """Whether it is in a GGUF file in a type that no stock program reads, so that it can't stay in that type."""
        return False

    @property
    def described(self) -> bool:
        """Whether a header describes it and its values aren't here: reading some raises SourceError."""
        return False

    @property
    def changed(self) -> str:
        """How its values were changed since they left the checkpoint; "" if they weren't."""
        return ""

    @property
    def kernel_packing(self) -> str | None:
        """The packing, one of PACKINGS, that `read_packed` returns; None if no kernel reads the tensor's bytes."""
        return None

    def read_bytes(self, rows: slice | RowIndices) -> ByteArray:
        """Return the rows as they are stored, uint8 (n_rows, row bytes); of a tensor of a GGUF type alone."""
        raise NotImplementedError(f"{self.name} ({self.dtype}) isn't a tensor of a GGUF file")

    @property
    def chosen(self) -> str | None:
        """How codes were chosen for weights that had none, and with what loss; None for what the file itself holds."""
        return None

    @property
    def coded(self) -> CodedTensor | None:
        """The tensor as codes and scales; None if the file stores values. The first time, scales may be read."""
        return None

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        """Return the codes and scales stored for the rows; None if the file stores values."""
        return None

    def read_packed(self, rows: slice | RowIndices) -> PackedRows | None:
        """Return the rows as they are stored, codes unchecked, for kernels; None without a `kernel_packing`."""
        return None

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        """Return the parts of mapped files that hold the rows, and the bytes between them."""
        return []

    def chunks(self) -> Iterator[tuple[slice, Float32Array]]:
        """Yield rows, as `row_chunks` does, with their values, float32 (n_rows, n_columns); evict each chunk after."""
        for rows in row_chunks(self.shape):
            self.read_now(rows)
            yield rows, self.read(rows)
            self.evict(rows)

    def prefetch(self, rows: slice | RowIndices) -> None:
        """Have the system read the rows in the background."""
        for part in self.on_disk(rows):
            advise(part, "prefetch")

    def read_now(self, rows: slice | RowIndices) -> None:
        """Map the rows' pages in one call, which waits for the disk; raise SourceError if the file has changed."""
        for part in self.on_disk(rows):
            require_unchanged(part)
            advise(part, "read_now")

    def evict(self, rows: slice | RowIndices) -> None:
        """Drop the rows' pages from this process's memory."""
        for part in self.on_disk(rows):
            advise(part, "evict")

    def require_unchanged(self) -> None:
        """Raise SourceError if a file that holds the tensor was written to since it was opened."""
        for part in self.on_disk(slice(0, 1)) if self.n_bytes else ():
            require_unchanged(part)

    def fitted(self, shape: tuple[int, ...]) -> SourceTensor | None:
        """Return the tensor as one of the model's shape; None if it can't be that tensor."""
        return self if self.shape == shape else None

    def matrices(self) -> Sequence[SourceTensor]:
        """Return the tensor, or where it has more than two dimensions its matrices, such as one for each expert."""
        n_matrices, shape = math.prod(self.shape[:-2]), self.shape[-2:]
        if n_matrices == 1:
            return (self,)
        return [RowsOf(self.name, self.dtype, shape, self, number * shape[0]) for number in range(n_matrices)]


@dataclass(frozen=True, eq=False)
class Following(SourceTensor):
    """A tensor whose values follow from those of `stored`; its name, shape and place on disk are that one's."""

    stored: SourceTensor

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.stored.name

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.stored.shape

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    @property
    def described(self) -> bool:
        return self.stored.described

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)


@dataclass(frozen=True)
class RowsOf(SourceTensor):
    """Neighbouring rows of the tensor `whole`, from row `first` on, as a tensor of their own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    whole: SourceTensor
    first: int

    @property
    def n_bytes(self) -> int:
        return self.whole.n_bytes * math.prod(self.shape) // math.prod(self.whole.shape)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.whole.read(self._in_whole(rows))

    def floats(self, rows: slice | RowIndices) -> Floats:
        return self.whole.floats(self._in_whole(rows))

    @property
    def coded(self) -> CodedRowsOf | None:
        coded = self.whole.coded
        return None if coded is None else CodedRowsOf(self.name, self.dtype, self.shape, coded.group, self, coded)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        return self.whole.read_codes(self._in_whole(rows))

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.whole.on_disk(self._in_whole(rows))

    def slice_in_whole(self, rows: slice) -> slice:
        """Return where `rows` are in the whole tensor."""
        start, stop, _ = rows.indices(math.prod(self.shape[:-1]))
        return slice(self.first + start, self.first + stop)

    def _in_whole(self, rows: slice | RowIndices) -> slice | RowIndices:
        return self.slice_in_whole(rows) if isinstance(rows, slice) else rows + self.first


@dataclass(frozen=True)
class CodedTensor(SourceTensor):
    """A tensor whose effective weights are codes times scales, read from the tensor `stored`.

    `shape` is the model's; `group` neighbouring columns share one scale.
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
    def coded(self) -> CodedTensor:
        return self

    @property
    def levels(self) -> int:
        """The number of its grid's levels: 3, or 4 for codes from -1 to 2, or a larger odd one; see grids.py."""
        return 3

    @abstractmethod
    def scales(self, rows: slice) -> Float32Array:
        """Return the scales of the rows, float32 (n_rows, n_columns / group)."""

    def scale_chunks(self, first: int, rows: slice = slice(None)) -> Iterator[Float32Array]:
        """Yield the scales of all rows, or of `rows`, chunk by chunk, the first chunk with about `first` of them."""
        for some in row_chunks((math.prod(self.shape[:-1]), self.shape[-1] // self.group), rows, first=first):
            yield self.scales(some)

    def leveled_scales(self, first: int, rows: slice = slice(None)) -> Iterator[tuple[Float32Array, int]]:
        """Yield what `scale_chunks` does, each chunk with the levels of its rows' codes: at most `levels`."""
        for scales in self.scale_chunks(first, rows):
            yield scales, self.levels

    @abstractmethod
    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        """Return the rows as codes and scales; raise TensorError if a code is invalid."""

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.read_codes(rows).dequantize()

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)


@dataclass(frozen=True)
class CodedRowsOf(CodedTensor):
    """Neighbouring rows of the tensor `whole` of codes, as a tensor of their own."""

    stored: RowsOf
    whole: CodedTensor

    @property
    def levels(self) -> int:
        return self.whole.levels

    def scales(self, rows: slice) -> Float32Array:
        return self.whole.scales(self.stored.slice_in_whole(rows))

    def leveled_scales(self, first: int, rows: slice = slice(None)) -> Iterator[tuple[Float32Array, int]]:
        return self.whole.leveled_scales(first, self.stored.slice_in_whole(rows))

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        coded = self.stored.read_codes(rows)
        assert coded is not None
        return coded


@dataclass(frozen=True)
class PackedTensor(CodedTensor):
    """A coded tensor in a packing that kernels read, one of PACKINGS."""

    packing: ClassVar[str]

    @property
    def kernel_packing(self) -> str:
        return self.packing

    @abstractmethod
    def read_packed(self, rows: slice | RowIndices) -> PackedRows:
        """Return the rows as they are stored, codes unchecked."""


@dataclass(frozen=True)
class CodedRows:
    """Rows as codes and scales: a weight is its code times the scale of its group of `group` neighbouring columns.

    `codes` is int8 (n_rows, n_columns), `scales` float32 (n_rows, n_columns / group). Codes are -1, 0 or 1; on a grid
    of four levels also 2, with scales of either sign; on finer grids any. Raises ValueError if the shapes don't fit.
    """

    codes: Codes
    scales: Float32Array
    group: int

    def __post_init__(self) -> None:
        n_rows, n_columns = self.codes.shape
        if n_columns % self.group or self.scales.shape != (n_rows, n_columns // self.group):
            raise ValueError(f"scales {self.scales.shape} don't fit codes {self.codes.shape} in groups of {self.group}")

    def dequantize(self) -> Float32Array:
        """Return the weights, float32 (n_rows, n_columns)."""
        values: Float32Array = np.empty(self.codes.shape, np.float32)
        groups = values.reshape(-1, self.group)
        codes, scales = np.ascontiguousarray(self.codes).reshape(groups.shape), np.ascontiguousarray(self.scales)
        if DEQUANTIZE(codes, scales.reshape(-1), *groups.shape, groups) is None:
            np.multiply(codes, scales.reshape(-1, 1), out=groups)
        return values


@dataclass(frozen=True)
class PackedRows:
    """Ternary rows as they are stored, for kernels: the rows `numbers` of `stored`, uint8 (n_stored, row bytes).

    `packing` is one of PACKINGS. "codes": a byte is a code. "base-3": a byte's base-3 digits, lowest first, are four
    neighbours' codes + 1. "four rows": bits 2i and 2i + 1 of a byte in row r are the code + 1 of row r + i · n_stored.
    "fours": per 128 columns 2 bytes of another meaning and 32 bytes, whose bits 2i and 2i + 1 are the code + 1 of the
    i-th of four neighbours. "quarters": per 128 columns 32 bytes; bits 6 - 2i and 7 - 2i of byte p are the code + 1 of
    column 32i + p.
    `scales` is float32 (n_rows, n_columns / group).
    """

    packing: str
    stored: ByteArray
    numbers: RowIndices
    n_columns: int
    scales: Float32Array
    group: int

    @classmethod
    def of(cls, rows: CodedRows) -> PackedRows:
        """Return rows of unpacked codes in the packing "codes"."""
        numbers, codes = np.arange(len(rows.codes)), np.ascontiguousarray(rows.codes).view(np.uint8)
        return cls("codes", codes, numbers, rows.codes.shape[1], rows.scales, rows.group)


DEQUANTIZE = Kernel("dequantize", np.int8, np.float32, int, int, np.float32)
