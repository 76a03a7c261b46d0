"""Matrices of b-bit integers with a scale per group of columns, in 32-bit words, as GPTQ, AutoRound and MLX store them.

The integers q of a row are one stream of bits in little-endian words, lowest bits first. `group` neighbouring columns
share a scale, and a zero point or a bias: a weight is (q - zero) · scale, or q · scale + bias, in float32. Two-bit
weights whose zero point is 1 or 2 are codes on four levels, or on three where none uses the fourth; the others are
read as floats.
"""

from __future__ import annotations

import math
import mmap
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Codes,
    Float32Array,
    Floats,
    RowIndices,
    SourceTensor,
    Words,
    row_chunks,
    span,
)
from tritgguf.converter.errors import TensorError

Integers = npt.NDArray[np.uint8]
WORD_BITS = 32
INTEGER_WORDS = {"I32": "<u4", "U32": "<u4"}
PAIRS = np.array([0, 2, 4, 6], np.uint8)
# The four 2-bit integers of every byte as one word: a look-up is several times faster than shifts.
FOURS = (np.arange(256, dtype=np.uint8)[:, None] >> PAIRS & 3).view(np.uint32)[:, 0]


def unpacked(packed: ByteArray, bits: int) -> Integers:
    """Return the integers, uint8 (n_rows, 8 · n_bytes / bits), of rows of packed ones, uint8 (n_rows, n_bytes).

    >>> unpacked(np.array([[0b11_10_01_00]], np.uint8), 2)
    array([[0, 1, 2, 3]], dtype=uint8)
    """
    if bits == 2:
        return _looked_up(packed, FOURS).view(np.uint8)
    if bits == 8:
        return packed
    if bits == 4:
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), 2 * packed.shape[1])
    n_rows, n_octets = len(packed), -(-packed.shape[1] // bits)  # eight integers fill `bits` bytes
    whole = np.pad(packed, ((0, 0), (0, n_octets * bits - packed.shape[1])))
    octets = np.zeros((n_rows, n_octets, 8), np.uint8)
    octets[..., :bits] = whole.reshape(n_rows, n_octets, bits)
    shifted = octets.view("<u8") >> np.arange(0, 8 * bits, bits, dtype=np.uint64)
    integers: Integers = shifted.astype(np.uint8) & np.uint8((1 << bits) - 1)
    return integers.reshape(n_rows, 8 * n_octets)


def _looked_up(packed: ByteArray, table: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    found = np.empty(packed.shape, np.uint32)
    return table[packed] if LOOK_UP(packed, packed.size, table, found) is None else found


@dataclass(frozen=True)
class Part:
    """A stored tensor that holds something for each of a matrix's rows: in a row of its own or, `transposed`, a column.

    The bytes of a transposed tensor's columns lie all over it, so it stays mapped until its last columns are read.
    """

    tensor: StoredTensor
    transposed: bool = False

    def words(self, rows: slice | RowIndices) -> Words:
        """Return what is stored for the rows, contiguous words (n_rows, n_words)."""
        kind = INTEGER_WORDS.get(self.tensor.dtype) or FLOAT_DTYPES[self.tensor.dtype].words
        stored = self.tensor.data.view(kind).reshape(self.tensor.shape)
        return np.ascontiguousarray(stored[:, rows].T if self.transposed else stored[rows])

    def floats(self, rows: slice | RowIndices) -> Float32Array:
        """Return what is stored for the rows as float32, (n_rows, n); raise TensorError if a value is NaN or Inf."""
        values, all_finite = checked(Floats(self.words(rows), self.tensor.dtype))
        if not all_finite:
            raise TensorError(
                f"{self.tensor.file.name}: tensor {self.tensor.name} holds NaN or Inf; expected finite values: "
                "the checkpoint is damaged, fetch it again"
            )
        return values

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        """Return the parts of the mapped file to read before the rows are, and to drop after."""
        if not self.transposed:
            return self.tensor.on_disk(rows)
        n_rows = self.tensor.shape[1]
        wanted, data = span(rows, n_rows), self.tensor.data
        item_bytes = data.nbytes // math.prod(self.tensor.shape)
        touch_all = wanted.start == 0 and wanted.stop * item_bytes >= mmap.PAGESIZE
        if touch_all or wanted.stop == n_rows:
            return [data]
        return [data[wanted.start * item_bytes : wanted.stop * item_bytes]]


@dataclass(frozen=True)
class IntegerTensor(SourceTensor):
    """A matrix of packed integers of `bits` bits; its `scales` are (n_rows, n_columns / group)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    group: int
    packed: Part
    scales: Part

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """All that is stored for the matrix."""

    @abstractmethod
    def weights(self, groups: Float32Array, rows: slice | RowIndices) -> Float32Array:
        """Return the weights of the rows' integers, float32 (n_rows, n_groups, group)."""

    @abstractmethod
    def four_level_zeros(self, rows: slice | RowIndices) -> Codes | None:
        """Return the zero points, int8 (n_rows, n_groups), if all are 1 or 2; else None."""

    @property
    def n_bytes(self) -> int:
        return sum(part.tensor.n_bytes for part in self.parts)

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return [piece for part in self.parts for piece in part.on_disk(rows)]

    def packed_bytes(self, rows: slice | RowIndices) -> ByteArray:
        """Return the packed integers of the rows, uint8 (n_rows, row bytes)."""
        return self.packed.words(rows).view(np.uint8)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        integers = unpacked(self.packed_bytes(rows), self.bits)
        groups = integers.reshape(len(integers), self.shape[1] // self.group, self.group).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.weights(groups, rows)
        if not np.isfinite(values).all():
            raise TensorError(f"{self.name} holds weights beyond float32's range: the checkpoint is damaged")
        return values.reshape(integers.shape)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        return None if self.coded is None else self.coded.read_codes(rows)

    @property
    def coded(self) -> FourLevelTensor | None:
        return self._coded

    @cached_property
    def _coded(self) -> FourLevelTensor | None:
        if self.bits != 2:
            return None
        n_groups = self.shape[1] // self.group
        if any(self.four_level_zeros(rows) is None for rows in row_chunks((self.shape[0], n_groups))):
            return None
        return FourLevelTensor(self.name, self.dtype, self.shape, self.group, self)


@dataclass(frozen=True)
class FourLevelTensor(CodedTensor):
    """The codes of 2-bit integers: q - 1 where the zero point is 1; where it is 2, 2 - q, with the scale negated."""

    stored: IntegerTensor

    @property
    def levels(self) -> int:
        return 3 if self._ternary else 4

    def scales(self, rows: slice | RowIndices) -> Float32Array:
        scales = self.stored.scales.floats(rows)
        return np.abs(scales) if self._ternary else scales * self._signs(rows)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        codes = self._codes(rows)
        if self._ternary:  # a ternary tensor's scales are of one sign
            signs = self._signs(rows) * np.where(self.stored.scales.floats(rows) < 0, np.int8(-1), np.int8(1))
            if (signs < 0).any():
                codes = (codes.reshape(*signs.shape, self.group) * signs[..., None]).reshape(codes.shape)
        return CodedRows(codes, self.scales(rows), self.group)

    @cached_property
    def _ternary(self) -> bool:
        """Whether no code is 2; the first rows of a tensor on four levels mostly suffice to see one."""
        for rows in row_chunks(self.shape):
            self.read_now(rows)
            highest = int(self._codes(rows).max(initial=0))
            self.evict(rows)
            if highest > 1:
                return False
        return True

    def _zeros(self, rows: slice | RowIndices) -> Codes:
        zeros = self.stored.four_level_zeros(rows)
        if zeros is None:
            raise TensorError(f"{self.name}: the file changed while it was read; run the command again")
        return zeros

    def _signs(self, rows: slice | RowIndices) -> Codes:
        signs: Codes = np.int8(3) - np.int8(2) * self._zeros(rows)
        return signs

    def _codes(self, rows: slice | RowIndices) -> Codes:
        """Return the codes, from -1 to 2, int8 (n_rows, n_columns)."""
        zeros, packed = self._zeros(rows), self.stored.packed_bytes(rows)
        if zeros.size and (zeros == zeros.flat[0]).all():
            return _looked_up(packed, CODES[int(zeros.flat[0])]).view(np.int8)
        groups = unpacked(packed, 2).view(np.int8).reshape(*zeros.shape, self.group)
        return ((groups - zeros[..., None]) * self._signs(rows)[..., None]).reshape(len(packed), self.shape[1])


LOOK_UP = Kernel("look_up", np.uint8, int, np.uint32, np.uint32)
_QUARTETS = FOURS.view(np.int8).reshape(256, 4)
CODES = {1: (_QUARTETS - np.int8(1)).view(np.uint32)[:, 0], 2: (np.int8(2) - _QUARTETS).view(np.uint32)[:, 0]}
