"""A tensor that a mapped file holds as it is, whatever the file's format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.floats import EIGHT_BITS, checked, widened8
from tritgguf.converter.core.tensors import ByteArray, Float32Array, Floats, RowIndices, SourceTensor, Words, span
from tritgguf.converter.errors import SourceError, TensorError


@dataclass(frozen=True)
class StoredTensor(SourceTensor):
    """One tensor of a memory-mapped file; `data` is its bytes, row by row.

    `dtype` is a name of core/dtypes.py's ITEM_BYTES.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    data: ByteArray

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    @property
    def words(self) -> Words:
        """The float values as unsigned words, (n_rows, n_columns)."""
        row_length = self.shape[-1] if self.shape else 1
        return self.data.view(FLOAT_DTYPES[self.dtype].words).reshape(math.prod(self.shape[:-1]), row_length)

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        n_rows = math.prod(self.shape[:-1])
        return [self.data.reshape(n_rows, -1)[span(rows, n_rows)].reshape(-1)] if self.data.size else []

    def floats(self, rows: slice | RowIndices) -> Floats:
        if self.dtype in EIGHT_BITS:
            row_length = self.shape[-1] if self.shape else 1
            return widened8(self.data.reshape(math.prod(self.shape[:-1]), row_length)[rows], self.dtype)
        if self.dtype not in FLOAT_DTYPES:
            raise SourceError(
                f"{self.file.name}: tensor {self.name} holds {self.dtype}; expected BF16, F16 or F32 "
                "(config.json names no packing of such weights: fetch it again, or give the unpacked checkpoint)"
            )
        return Floats(np.ascontiguousarray(self.words[rows]), self.dtype)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values, all_finite = checked(self.floats(rows))
        if not all_finite:
            self._refuse(values, rows)
        return values

    def _refuse(self, values: Float32Array, rows: slice | RowIndices) -> NoReturn:
        """Raise TensorError that names the first NaN or Inf."""
        finite = np.isfinite(values)
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        row = int(rows[row]) if isinstance(rows, np.ndarray) else row + (rows.start or 0)
        raise TensorError(
            f"{self.file.name}: tensor {self.name} has {(~finite).sum()} NaN or Inf values among the rows read, the "
            f"first at row {row}, column {column}; expected finite weights: the checkpoint is damaged, fetch it again"
        )


StoredTensors: TypeAlias = Mapping[str, StoredTensor]
