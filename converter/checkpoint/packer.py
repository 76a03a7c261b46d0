"""What a packer is: it turns one tensor's codes and scales, or its floats, into safetensors entries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Float32Array, RowIndices, row_chunks

Piece: TypeAlias = tuple[str, int, ByteArray]  # the entry's name, the offset in it, the bytes to write there
Constants: TypeAlias = Mapping[str, npt.NDArray[Any]]  # the suffix of an entry's name → what the whole tensor shares


@dataclass(frozen=True)
class Coder:
    """Quantizes one tensor's rows; what depends on the whole tensor, such as its scale, is fixed.

    `quantize` takes float32 rows, (n_rows, n_columns); it may add columns of zeros to fill the last group. `constants`
    are arrays for the whole tensor, which the packer writes once.
    """

    quantize: Callable[[Float32Array], CodedRows]
    constants: Constants = field(default_factory=dict)


class Packer(ABC):
    """Writes tensors in one packing, each as one or more entries, chunk by chunk."""

    @abstractmethod
    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        """Return what a tensor is stored as; raise TensorError where its shape doesn't fit."""

    def chunks(self, shape: tuple[int, ...]) -> Iterator[slice]:
        """Yield slices that cover the tensor and can be packed one by one."""
        return row_chunks(shape)

    def rows(self, shape: tuple[int, ...], chunk: slice) -> slice | RowIndices:
        """Return the tensor's rows that a chunk holds."""
        return chunk

    @abstractmethod
    def pack(
        self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, constants: Constants
    ) -> list[Piece]:
        """Return the bytes of a chunk's rows, and where to write them."""

    def encode(
        self, name: str, shape: tuple[int, ...], chunk: slice, values: Float32Array, coder: Coder | None
    ) -> tuple[list[Piece], Float32Array]:
        """Quantize and pack a chunk's float32 rows; return the bytes, and the values that a reader gets from them."""
        if coder is None:
            raise TypeError(f"{type(self).__name__} stores codes: {name} needs a coder")
        rows = coder.quantize(values)
        return self.pack(name, shape, chunk, rows, coder.constants), rows.dequantize()[:, : values.shape[1]]
