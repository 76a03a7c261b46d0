"""A tensor of a stock type in a GGUF file, read as rows of floats."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    Float32Array,
    Floats,
    RowIndices,
    SourceTensor,
    span,
)
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.quant.codec import ternary_codec

TERNARY = ("TQ1_0", "TQ2_0", "Q2_0")  # this package decodes these types faster than gguf's does


@dataclass(frozen=True)
class GgufTensor(SourceTensor):
    """One tensor of a memory-mapped GGUF file; `dtype` is its type's name, such as Q4_K, `shape` rows before columns.

    The rows of a tensor with three or four dimensions are those of all its matrices, one after the other.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    data: ByteArray = field(repr=False)

    @property
    def ggml_type(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.dtype]

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        n_rows = math.prod(self.shape[:-1])
        return [self.data.reshape(n_rows, -1)[span(rows, n_rows)].reshape(-1)]

    def read_bytes(self, rows: slice | RowIndices) -> ByteArray:
        """Return those rows as they are stored, shape (n_rows, row bytes)."""
        return self.data.reshape(math.prod(self.shape[:-1]), -1)[rows]

    def floats(self, rows: slice | RowIndices) -> Floats:
        if self.dtype in FLOAT_DTYPES:
            stored = np.ascontiguousarray(self.read_bytes(rows))
            return Floats(stored.view(FLOAT_DTYPES[self.dtype].words), self.dtype)
        return super().floats(rows)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        if self.dtype in FLOAT_DTYPES:
            values, all_finite = checked(self.floats(rows))
            if all_finite:
                return values
        stored = np.ascontiguousarray(self.read_bytes(rows))
        if self.dtype in TERNARY and (coded := self._coded(stored)) is not None:
            return coded.dequantize()
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                values = quants.dequantize(stored, self.ggml_type)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"{self.file.name}: tensor {self.name} is {self.dtype}, which gguf's Python package can't dequantize; "
                "start from the model in another type"
            ) from error
        if not np.isfinite(values).all():
            raise TensorError(
                f"{self.file.name}: tensor {self.name} has {(~np.isfinite(values)).sum()} NaN or Inf values among the "
                "rows read; expected finite weights: the file is damaged, fetch it again"
            )
        return values

    def _coded(self, stored: ByteArray) -> CodedRows | None:
        """Return rows of a ternary type as codes and scales; None where a code is invalid or a scale isn't finite."""
        try:
            coded = ternary_codec(self.dtype.lower()).unpack(stored)
        except TensorError:
            return None
        return coded if np.isfinite(coded.scales).all() else None
