"""Read a GGUF file of any architecture: its typed metadata, and its tensors, read as rows of floats.

Everything is checked before a weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, Keys, quants

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
from tritgguf.converter.errors import SourceError, TensorError, UnsupportedError
from tritgguf.converter.gguf_io import parts
from tritgguf.converter.gguf_io.header_reader import MAGIC, HeaderReader, TensorDescription, map_file
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.quant.codec import ternary_codec

DEFAULT_ALIGNMENT = 32
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


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: its typed metadata in the file's order, and its tensors by name."""

    path: Path
    metadata: Metadata = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)
    file_bytes: int
    parts: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, or all of its parts in order."""
        return self.parts or (self.path,)

    def value(self, key: str, default: object = None) -> object:
        """Return a key's value without its type, or `default`."""
        return self.metadata[key].data if key in self.metadata else default

    @property
    def architecture(self) -> str | None:
        name = self.value(Keys.General.ARCHITECTURE)
        return name if isinstance(name, str) else None


def is_gguf(path: Path) -> bool:
    """Return whether the path is a file that begins with GGUF's magic bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; where it is one part of a model, open all parts as one file.

    Raises SourceError where a file is damaged or a part is missing, UnsupportedError for big-endian files, versions
    other than 2 and 3, and tensor types that gguf doesn't know.
    """
    file = _read_file(path)
    n_parts = file.value(parts.COUNT, 1)
    if not isinstance(n_parts, int) or n_parts < 2:
        return file
    siblings = parts.sibling_paths(path, n_parts)
    if siblings is None:
        raise SourceError(
            f"{path.name} is one of {n_parts} parts of a model; expected a name like model-00001-of-{n_parts:05d}.gguf"
        )
    return _joined([_read_file(sibling) for sibling in siblings])


def _joined(files: Sequence[GgufFile]) -> GgufFile:
    """Return the parts of a model as one file, under the first part's path."""
    path = files[0].path
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(files):
        if (part.value(parts.NUMBER), part.value(parts.COUNT)) != (number, len(files)):
            raise SourceError(
                f"{part.path.name} claims to be part {part.value(parts.NUMBER)} of {part.value(parts.COUNT)}, "
                f"expected {number} of {len(files)}, counted from 0: it belongs to another model or was renamed"
            )
        if twice := tensors.keys() & part.tensors.keys():
            raise SourceError(f"{part.path.name} and another part both hold {min(twice)}: fetch the parts again")
        tensors |= part.tensors
    expected = files[0].value(parts.TENSOR_COUNT, len(tensors))
    if len(tensors) != expected:
        raise SourceError(f"{path.name} and its other parts hold {len(tensors)} tensors, expected {expected}")
    metadata = {key: value for key, value in files[0].metadata.items() if key not in parts.KEYS}
    return GgufFile(path, metadata, tensors, sum(part.file_bytes for part in files), tuple(part.path for part in files))


def _read_file(path: Path) -> GgufFile:
    data = map_file(path)
    header = HeaderReader(path, data)
    metadata, described = header.metadata(), header.tensors()
    with header.damage():
        start = _aligned(header.position, metadata)
    body = np.frombuffer(data, np.uint8)[start:]
    _require_places(path, described, len(body))
    tensors = {
        name: GgufTensor(name, kind.name, shape, path, body[offset : offset + _n_bytes(kind, shape)])
        for name, (kind, shape, offset) in described.items()
    }
    return GgufFile(path, metadata, tensors, len(data))


def _aligned(offset: int, metadata: Metadata) -> int:
    alignment = metadata[Keys.General.ALIGNMENT].data if Keys.General.ALIGNMENT in metadata else DEFAULT_ALIGNMENT
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{Keys.General.ALIGNMENT} is {alignment!r}, expected a power of two")
    return -(-offset // alignment) * alignment


def _n_bytes(kind: GGMLQuantizationType, shape: Sequence[int]) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def _require_places(path: Path, described: Mapping[str, TensorDescription], body_bytes: int) -> None:
    """Check that no tensors overlap and that the file holds the data of all of them."""
    end, previous = 0, ""
    for name, (kind, shape, offset) in sorted(described.items(), key=lambda item: item[1].offset):
        if offset < end:
            raise SourceError(f"{path}: the data of {name} overlaps {previous}; fetch or convert the file again")
        end, previous = offset + _n_bytes(kind, shape), name
    if end > body_bytes:
        raise SourceError(
            f"{path}: is truncated, its header promises {end} bytes of tensors, the file has {max(body_bytes, 0)}; "
            "fetch or convert the file again"
        )
