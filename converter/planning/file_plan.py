"""The plan of a whole file before it is written: each tensor's place, its type, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tritgguf.converter.core.tensors import Float32Array, SourceTensor
from tritgguf.converter.gguf_io.header import TensorEntry, aligned
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import Encoder
from tritgguf.converter.quant.codec import Codec
from tritgguf.converter.quant.grids import Grid


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file: its encoder, the reason for it, and whether it stores every value exactly.

    `exact` is None if there are no weights, or only a header, to tell it. `fallback` means that the tensor's rows don't
    fit the requested type. `error` is the relative error on a sample of rows, None if it wasn't measured. `smallest` is
    the smallest exact type if another one was chosen for its speed.
    """

    encoder: Encoder
    reason: str
    exact: bool | None = None
    fallback: bool = False
    error: float | None = None
    smallest: Codec | None = None

    @property
    def spec(self) -> TensorSpec:
        return self.encoder.spec

    @property
    def codec(self) -> Codec:
        """The tensor's type."""
        return self.encoder.codec

    @property
    def grid(self) -> Grid | None:
        """The grid whose codes are stored, None if the file stores floats or a method's codes."""
        return self.encoder.grid

    @property
    def n_bytes(self) -> int:
        *rows, n_columns = self.spec.shape
        return math.prod(rows) * self.codec.row_bytes(n_columns)

    def stored_values(self, source: SourceTensor | None, rows: slice) -> Float32Array:
        """Return what a reader of the file makes of rows of the tensor, float32 (n_rows, n_columns)."""
        return self.codec.dequantize(self.encoder.encode(source, rows))

    @property
    def entry(self) -> TensorEntry:
        """The tensor's entry in the file's header."""
        return TensorEntry(self.spec.name, self.spec.shape, int(self.codec.ggml_type), self.n_bytes)

    @property
    def rounded(self) -> bool:
        """Whether a method quantizes the tensor with loss."""
        return self.exact is False and self.encoder.rounds

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "type": self.codec.name,
            "shape": list(self.spec.shape),
            "bytes": self.n_bytes,
            "exact": self.exact,
            "reason": self.reason,
            "relative_error": self.error,
        }


@dataclass(frozen=True)
class FilePart:
    """One file: its header's bytes and its tensors in order."""

    header: bytes
    tensors: tuple[TensorPlan, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The byte offset of each tensor in the file, then the end of the file; all are multiples of 32."""
        ends = [aligned(len(self.header))]
        for tensor in self.tensors:
            ends.append(ends[-1] + aligned(tensor.n_bytes))
        return tuple(ends)

    @property
    def file_bytes(self) -> int:
        return self.offsets[-1]


@dataclass(frozen=True)
class FilePlan:
    """One file, or the parts of a split file, with `notes` for the user."""

    parts: tuple[FilePart, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def file_bytes(self) -> int:
        """The bytes of the file, or of all parts together."""
        return sum(part.file_bytes for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "file_bytes": self.file_bytes,
            **({"part_bytes": [part.file_bytes for part in self.parts]} if len(self.parts) > 1 else {}),
            "tensors": [tensor.as_json() for tensor in self.tensors],
            "notes": list(self.notes),
        }
