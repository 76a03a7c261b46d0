"""Foreign tensor types: those of other programs' GGUF files, which llama.cpp lacks or whose number it uses otherwise.

Each file in foreign/ defines `FOREIGN`: what the type is called, who writes and loads it, and either how its rows
become codes and scales or why it is refused. A foreign tensor is never passed through. Several types may have one
number, so foreign types aren't added to gguf's enum; tensor_types.py tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from tritgguf.converter.core.registry import offered
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Codes,
    Float32Array,
    PackedRows,
    RowIndices,
    row_chunks,
    row_numbers,
)
from tritgguf.converter.errors import TensorError
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor

TERNARY, FOUR = 3, 4  # levels
Result = TypeVar("Result")


class Layout(NamedTuple):
    """The sizes of a type: `block` values in `block_bytes`; `row_head` bytes before a row, `tail` after the tensor."""

    block: int
    block_bytes: int
    row_head: int = 0
    tail: int = 0

    def row_bytes(self, n_columns: int) -> int:
        return self.row_head + n_columns // self.block * self.block_bytes

    def n_bytes(self, shape: Sequence[int]) -> int | None:
        """Return the size of a tensor; None if rows of that length don't fit the type."""
        if shape[-1] % self.block:
            return None
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1]) + self.tail

    def __str__(self) -> str:
        return f"{self.block_bytes} bytes per {self.block} values"


class ForeignType:
    """One foreign type, of the tensor type numbers `numbers`.

    `origin` says whose files have it, `loaded_by` which programs load those. A type that can't be read has no `layout`
    and a `refusal`: why, and what to do. `group` columns share a scale, None for a whole row. `remark` is what users
    must know. Kernels read its rows in `packing`, one of PACKINGS.
    """

    name: str
    numbers: tuple[int, ...]
    origin: str
    loaded_by: str
    layout: Layout | None = None
    refusal: str = ""
    remark: str = ""
    group: int | None = None
    packing: str | None = None

    def codes(self, stored: ByteArray, n_columns: int) -> Codes:
        """Return the codes, int8 (n_rows, n_columns), of rows, uint8 (n_rows, row bytes); TensorError on invalid ones.

        The TensorError of this method and the next two begins with what the tensor holds: its name is put before.
        """
        raise NotImplementedError(self.name)

    def scales(self, stored: ByteArray, tail: ByteArray) -> Float32Array:
        """Return the scales, float32 (n_rows, n_groups), of rows, uint8 (n_rows, row bytes), and the tensor's tail."""
        raise NotImplementedError(self.name)

    def scales_and_levels(self, stored: ByteArray, tail: ByteArray) -> tuple[Float32Array, int]:
        """Return the same scales, and the levels of the rows' codes: 4 if there is a code 2, else 3."""
        return self.scales(stored, tail), TERNARY

    @property
    def numbered(self) -> str:
        """What messages call it."""
        return f"{self.name} (type {' or '.join(map(str, self.numbers))})"

    def tensor(self, name: str, shape: tuple[int, ...], file: Path, data: ByteArray) -> ForeignTensor:
        """Return the tensor whose bytes `data` are."""
        assert self.layout is not None
        end = len(data) - self.layout.tail
        stored = GgufTensor(name, self.name, shape, file, data[:end])
        return ForeignTensor(name, self.name, shape, self.group or shape[-1], stored, self, data[end:])


def loaders(kind: ForeignType) -> str:
    """Say, as the end of a sentence about files of that type, which programs load them."""
    return f"{kind.loaded_by} {'load' if ' and ' in kind.loaded_by else 'loads'}"


def foreign_types() -> tuple[ForeignType, ...]:
    """Return every foreign type."""
    return offered("tritgguf.converter.gguf_io.foreign", "FOREIGN", ForeignType)


@dataclass(frozen=True)
class ForeignTensor(CodedTensor):
    """One tensor of a foreign type; `stored` has its rows, `tail` the bytes after them."""

    stored: GgufTensor
    kind: ForeignType
    tail: ByteArray = field(repr=False)

    @property
    def foreign(self) -> bool:
        return True

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes + self.tail.nbytes

    @property
    def kernel_packing(self) -> str | None:
        return self.kind.packing

    def scales(self, rows: slice | RowIndices) -> Float32Array:
        return self._finite(self._named(partial(self.kind.scales, self.stored.read_bytes(rows), self.tail)))

    def leveled_scales(self, first: int, rows: slice = slice(None)) -> Iterator[tuple[Float32Array, int]]:
        n_rows = math.prod(self.shape[:-1])
        for some in row_chunks((n_rows, self.shape[-1] // self.group), rows, first=first):
            if not self.tail.size:  # else the scale is there, and no row is read
                self.read_now(some)
            stored = self.stored.read_bytes(some)
            scales, levels = self._named(partial(self.kind.scales_and_levels, stored, self.tail))
            yield self._finite(scales), levels
            self.evict(some)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        stored, n_columns = np.ascontiguousarray(self.stored.read_bytes(rows)), self.shape[-1]
        return CodedRows(self._named(partial(self.kind.codes, stored, n_columns)), self.scales(rows), self.group)

    def read_packed(self, rows: slice | RowIndices) -> PackedRows | None:
        if self.kind.packing is None:
            return None
        n_rows = math.prod(self.shape[:-1])
        stored, numbers = self.stored.data.reshape(n_rows, -1), row_numbers(rows, n_rows)
        return PackedRows(self.kind.packing, stored, numbers, self.shape[-1], self.scales(rows), self.group)

    def _named(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except TensorError as error:
            raise TensorError(f"{self.stored.file.name}: tensor {self.name} {error}") from error

    def _finite(self, scales: Float32Array) -> Float32Array:
        if not np.isfinite(scales).all():
            raise TensorError(
                f"{self.stored.file.name}: tensor {self.name} has {(~np.isfinite(scales)).sum()} NaN or Inf scales "
                "among the rows read; expected finite ones: the file is damaged, fetch it again"
            )
        return scales
