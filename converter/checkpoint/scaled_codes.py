"""Weights stored as codes and scales: a weight is (code - zero point) · scale, with one scale per block of the matrix.

Codes are integers in 32-bit words, 8-bit integers or 8-bit floats. The product is rounded as the format's own
dequantizer does. Where the codes have at most four levels, they are kept as codes (four_level_words.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tritgguf.converter.checkpoint.packed_integers import WORD_BITS, unpacked
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.floats import bf16
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Codes,
    Float32Array,
    RowIndices,
    SourceTensor,
    row_numbers,
    span,
)
from tritgguf.converter.errors import SourceError, TensorError
from tritgguf.converter.quant.codec import fp16

Block = tuple[int, int]  # rows and columns that share a scale
ROUNDINGS: dict[str, Callable[[Float32Array], Float32Array]] = {"BF16": bf16, "F16": fp16, "F32": lambda values: values}


class Numbers(ABC):
    """A stored matrix of numbers, read some rows at a time."""

    stored: StoredTensor

    @abstractmethod
    def read(self, rows: slice | RowIndices) -> Float32Array | Codes:
        """Return the rows, float32 or int8 (n_rows, n_columns); raise TensorError if one is NaN or Inf."""

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        """Return the part of the file that holds the rows."""
        return self.stored.on_disk(rows)


@dataclass(frozen=True)
class Items(Numbers):
    """One item per number: I8, or floats of 8, 16 or 32 bits."""

    stored: StoredTensor

    def read(self, rows: slice | RowIndices) -> Float32Array | Codes:
        if self.stored.dtype != "I8":
            return self.stored.read(rows)
        codes: Codes = self.stored.data.view(np.int8).reshape(-1, self.stored.shape[-1])[rows]
        return codes


@dataclass(frozen=True)
class Words(Numbers):
    """Codes of 2, 4 or 8 bits in int32 words, the first of a row in the lowest bits, each plus 2^(bits - 1).

    A row begins with a new word, so its last one may be partly unused. Source: `pack_to_int32` in compressed-tensors,
    https://github.com/vllm-project/compressed-tensors.
    """

    stored: StoredTensor
    bits: int
    n_columns: int

    @property
    def bytes(self) -> ByteArray:
        """The rows as they are stored, uint8 (n_rows, row bytes)."""
        return self.stored.data.reshape(self.stored.shape[0], -1)

    def read(self, rows: slice | RowIndices) -> Codes:
        integers = unpacked(self.bytes[rows], self.bits)
        codes: Codes = (integers - np.uint8(2 ** (self.bits - 1))).view(np.int8)
        return codes[:, : self.n_columns]


@dataclass(frozen=True)
class WordsDown(Numbers):
    """Like Words, but the codes of a column share a word: zero points lie so on disk."""

    stored: StoredTensor
    bits: int

    def read(self, rows: slice | RowIndices) -> Float32Array:
        per_word = WORD_BITS // self.bits
        numbers = row_numbers(rows, self.stored.shape[0] * per_word)
        words = self.stored.data.view("<u4").reshape(self.stored.shape)[numbers // per_word]
        shifts = (numbers % per_word * self.bits).astype(np.uint32)[:, None]
        codes: Float32Array = (words >> shifts & np.uint32(2**self.bits - 1)).astype(np.float32)
        codes -= np.float32(2 ** (self.bits - 1))
        return codes

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(slice(None))  # few bytes


@dataclass(frozen=True)
class PerBlock:
    """Numbers, each for a block of rows and columns of the weights; the last blocks may be cut off."""

    numbers: Numbers
    block: Block

    def read(self, rows: slice | RowIndices, n_rows: int) -> Float32Array:
        """Return the numbers for these of the weights' `n_rows` rows, float32 (n_rows, n_blocks)."""
        if self.block[0] == 1:
            wanted = span(rows, n_rows) if isinstance(rows, slice) else rows
            return np.asarray(self.numbers.read(wanted), np.float32)
        blocks, places = np.unique(row_numbers(rows, n_rows) // self.block[0], return_inverse=True)
        return np.asarray(self.numbers.read(blocks), np.float32)[places]

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        """Return the part of the file that holds the numbers for these of the weights' rows."""
        return self.numbers.on_disk(rows if self.block[0] == 1 else slice(None))

    def spread(self, rows: slice | RowIndices, shape: tuple[int, ...]) -> Float32Array:
        """Return the numbers for each value of these rows, float32 (n_rows, n_columns) or (n_rows, 1)."""
        found = self.read(rows, shape[0])
        return found if found.shape[1] == 1 else np.repeat(found, self.block[1], axis=1)[:, : shape[1]]


def per_block(stored: StoredTensor, shape: tuple[int, ...], block: Block) -> PerBlock:
    """Return the numbers of `stored` for each block of weights of `shape`; raise SourceError where they don't fit."""
    block = (min(block[0], shape[0]), min(block[1], shape[1]))
    wanted = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    if [n for n in stored.shape if n != 1] != [n for n in wanted if n != 1]:
        raise SourceError(
            f"{stored.name} has the shape {stored.shape}; expected {wanted}, one value per {block[0]} × {block[1]} of "
            f"the {shape[0]} × {shape[1]} weights: the checkpoint is damaged, or config.json belongs to another"
        )
    return PerBlock(Items(replace(stored, shape=wanted)), block)


def scales_per_block(stored: StoredTensor, shape: tuple[int, ...], block: Block) -> PerBlock:
    """Return the same for scales, which must be floats of 16 or 32 bits."""
    if stored.dtype not in FLOAT_DTYPES:
        raise SourceError(f"{stored.name} holds {stored.dtype}; expected scales in {', '.join(FLOAT_DTYPES)}")
    return per_block(stored, shape, block)


@dataclass(frozen=True)
class ScaledTensor(SourceTensor):
    """A tensor whose weights are (code - zero) · scale, given as floats; without `zeros` they are 0.

    The product is rounded to `rounded_to`, BF16, F16 or F32. `find_coded` tells whether the codes have at most four
    levels, and returns the tensor as such; it is called once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    codes: Numbers
    scales: PerBlock
    rounded_to: str
    zeros: PerBlock | None = None
    find_coded: Callable[[], CodedTensor | None] | None = None

    @property
    def n_bytes(self) -> int:
        return self.codes.stored.n_bytes

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        parts = [part.on_disk(rows) for part in (self.codes, self.scales, self.zeros) if part is not None]
        return [piece for pieces in parts for piece in pieces]

    @cached_property
    def _found(self) -> CodedTensor | None:
        return None if self.find_coded is None else self.find_coded()

    @property
    def coded(self) -> CodedTensor | None:
        return self._found

    def read_codes(self, rows: slice | RowIndices) -> CodedRows | None:
        return None if self._found is None else self._found.read_codes(rows)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values = np.asarray(self.codes.read(rows), np.float32)
        if self.zeros is not None:
            values = values - self.zeros.spread(rows, self.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            values = ROUNDINGS[self.rounded_to](values * self.scales.spread(rows, self.shape))
        if not np.isfinite(values).all():
            raise TensorError(f"{self.name} has weights beyond {self.rounded_to}'s range: the checkpoint is damaged")
        return values


def block_sizes(settings: Settings, key: str) -> Block:
    """Return the rows and columns of config.json's list of two sizes; raise SourceError for anything else."""
    sizes = settings.numbers(key, 2)
    if any(size != int(size) or size < 1 for size in sizes):
        raise settings.wrong(key, "two positive integers")
    return int(sizes[0]), int(sizes[1])


def n_words(n_columns: int, bits: int) -> int:
    """Return the number of words in a row of that many codes."""
    return -(-n_columns * bits // WORD_BITS)
