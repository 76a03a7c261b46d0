"""Read a GGUF file of any architecture: its typed metadata, and its tensors as sources of float rows.

gguf's own reader isn't used: it keeps an array view per string, which takes seconds for a vocabulary of today, and it
never ends on an array whose claimed length lies beyond the file. Everything is checked before a weight byte is read.
Layout: docs/gguf.md in the ggml repository.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, Keys, quants

from tritgguf.converter import ggml_types
from tritgguf.converter.errors import SourceError, TensorError, UnsupportedError
from tritgguf.converter.metadata import Metadata, Scalar, Value
from tritgguf.converter.tensors import ByteArray, Float32Array, RowIndices, SourceTensor, span

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
SPLIT_COUNT = "split.count"

_PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of key-value pairs
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMBERS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
assert ggml_types.Q2_0  # the import makes GGMLQuantizationType and quants know Q2_0


@dataclass(frozen=True)
class GgufTensor(SourceTensor):
    """One tensor of a memory-mapped GGUF file; `dtype` is its type's name, such as Q4_K, `shape` rows before columns.

    Of a tensor with three or four dimensions the rows are those of all its matrices, one after the other.
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

    def read(self, rows: slice | RowIndices) -> Float32Array:
        stored = np.ascontiguousarray(self.read_bytes(rows))
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                values: Float32Array = quants.dequantize(stored, self.ggml_type)
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


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: its metadata in the file's order, ready to be written again, and its tensors by name."""

    path: Path
    metadata: Metadata = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)
    file_bytes: int

    def value(self, key: str, default: object = None) -> object:
        """Return the plain value of a key."""
        return self.metadata[key].data if key in self.metadata else default

    @property
    def architecture(self) -> str | None:
        name = self.value(Keys.General.ARCHITECTURE)
        return name if isinstance(name, str) else None


def is_gguf(path: Path) -> bool:
    """Whether the path is a file that begins as a GGUF file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; raise SourceError where it is damaged, UnsupportedError for big-endian and split files."""
    data = _mapped(path)
    if data[: len(MAGIC)] != MAGIC:
        raise SourceError(f"{path.name} begins with {data[:4]!r}; expected {MAGIC!r}: it is no GGUF file")
    try:
        return _read(path, data)
    except (struct.error, ValueError) as error:
        raise SourceError(f"{path.name}: the header is damaged or cut off ({error}): fetch it again") from error


def _mapped(path: Path) -> mmap.mmap | bytes:
    if not path.is_file():
        raise SourceError(f"{path} is no file; expected a GGUF file")
    try:
        with path.open("rb") as file:
            empty = path.stat().st_size == 0
            return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SourceError(f"{path.name} can't be read: {error.strerror or error}") from error


def _read(path: Path, data: mmap.mmap | bytes) -> GgufFile:
    _, version, n_tensors, n_values = _PREAMBLE.unpack_from(data, 0)
    if version not in VERSIONS:
        what = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
        raise UnsupportedError(f"{path.name} is {what}; expected a little-endian GGUF file of version 2 or 3")
    cursor = _Cursor(data, _PREAMBLE.size)
    metadata = dict(_unique(cursor.entries(n_values), "key"))
    n_parts = metadata[SPLIT_COUNT].data if SPLIT_COUNT in metadata else 0
    if isinstance(n_parts, int) and n_parts > 1:
        raise UnsupportedError(
            f"{path.name} is one of {n_parts} parts of a model; join them first: llama-gguf-split --merge"
        )
    described = dict(_unique(cursor.tensors(n_tensors), "tensor"))
    start = _aligned(cursor.offset, metadata)
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


_Described = tuple[GGMLQuantizationType, tuple[int, ...], int]


def _n_bytes(kind: GGMLQuantizationType, shape: Sequence[int]) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def _require_places(path: Path, described: Mapping[str, _Described], body_bytes: int) -> None:
    """Check that every tensor has its own place in the file, and that the file is all there."""
    end, previous = 0, ""
    for name, (kind, shape, offset) in sorted(described.items(), key=lambda item: item[1][2]):
        if offset < end:
            raise SourceError(f"{path.name}: the data of {name} overlaps {previous}: the file is damaged")
        end, previous = offset + _n_bytes(kind, shape), name
    if end > body_bytes:
        raise SourceError(
            f"{path.name} is truncated: its header promises {end} bytes of tensors, the file has {max(body_bytes, 0)}: "
            "fetch it again"
        )


def _unique(entries: Iterator[tuple[str, Any]], what: str) -> Iterator[tuple[str, Any]]:
    seen = set()
    for name, entry in entries:
        if name in seen:
            raise ValueError(f"{what} {name!r} stands there twice")
        seen.add(name)
        yield name, entry


class _Cursor:
    """A read position in the header; running over the end raises struct.error or ValueError."""

    def __init__(self, data: mmap.mmap | bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def entries(self, count: int) -> Iterator[tuple[str, Value]]:
        """Yield `count` keys with their values."""
        for _ in range(count):
            key = self._name()
            kind = GGUFValueType(self._number(_U32))
            yield key, self._array() if kind is GGUFValueType.ARRAY else Value(self._scalar(kind), kind)

    def tensors(self, count: int) -> Iterator[tuple[str, _Described]]:
        """Yield `count` tensor descriptions: name, then type, shape and offset after the header."""
        for _ in range(count):
            name = self._name()
            n_dimensions = self._number(_U32)
            if n_dimensions > MAX_DIMENSIONS:
                raise ValueError(f"tensor {name!r} has {n_dimensions} dimensions")
            shape = tuple(reversed([self._number(_U64) for _ in range(n_dimensions)])) or (1,)
            number, offset = self._number(_U32), self._number(_U64)
            try:
                kind = GGMLQuantizationType(number)
            except ValueError:
                raise UnsupportedError(
                    f"tensor {name} has the type {number}, which isn't known here; known are those of gguf's Python "
                    "package"
                ) from None
            if shape[-1] % GGML_QUANT_SIZES[kind][0] or 0 in shape:
                raise ValueError(f"tensor {name!r} of shape {shape} doesn't fit {kind.name}")
            yield name, (kind, shape, offset)

    def _number(self, layout: struct.Struct) -> int:
        number: int = layout.unpack_from(self.data, self.offset)[0]
        self.offset += layout.size
        return number

    def _take(self, n_bytes: int) -> bytes:
        start, self.offset = self.offset, self.offset + n_bytes
        if self.offset > len(self.data):
            raise ValueError(f"{n_bytes} bytes wanted at byte {start} of {len(self.data)}")
        return self.data[start : self.offset]

    def _string(self) -> bytes:
        return self._take(self._number(_U64))

    def _text(self) -> str:
        return self._string().decode("utf-8")

    def _name(self) -> str:
        name = self._text()
        if not name.isprintable():
            raise ValueError(f"a name is {name!r:.80}")
        return name

    def _scalar(self, kind: GGUFValueType) -> Scalar:
        if kind is GGUFValueType.STRING:
            return self._text()
        layout = np.dtype(_NUMBERS[kind])
        number: Scalar = np.frombuffer(self._take(layout.itemsize), layout)[0].item()
        return number

    def _array(self) -> Value:
        element, length = GGUFValueType(self._number(_U32)), self._number(_U64)
        if element is GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        if element is not GGUFValueType.STRING:
            layout = np.dtype(_NUMBERS[element])
            numbers = np.frombuffer(self._take(length * layout.itemsize), layout).tolist()
            return Value(numbers, GGUFValueType.ARRAY, element)
        strings = [self._string() for _ in range(length)]
        try:
            return Value([string.decode("utf-8") for string in strings], GGUFValueType.ARRAY, element)
        except UnicodeDecodeError:  # a token may be a part of a character
            return Value(strings, GGUFValueType.ARRAY, element)
