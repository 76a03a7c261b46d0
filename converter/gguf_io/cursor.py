"""A read position in a GGUF file's header: the file's own grammar, and no more."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Scalar, Value

Described = tuple[GGMLQuantizationType, tuple[int, ...], int]  # type, shape, offset after the header

MAX_DIMENSIONS = 4

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
NUMBERS = {
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


class Cursor:
    """Running over the end raises struct.error or ValueError."""

    def __init__(self, data: mmap.mmap | bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def entries(self, count: int) -> Iterator[tuple[str, Value]]:
        """Yield `count` keys with their values."""
        for _ in range(count):
            key = self._name()
            kind = GGUFValueType(self._number(_U32))
            yield key, self._array() if kind is GGUFValueType.ARRAY else Value(self._scalar(kind), kind)

    def tensors(self, count: int) -> Iterator[tuple[str, Described]]:
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
        layout = np.dtype(NUMBERS[kind])
        number: Scalar = np.frombuffer(self._take(layout.itemsize), layout)[0].item()
        return number

    def _array(self) -> Value:
        element, length = GGUFValueType(self._number(_U32)), self._number(_U64)
        if element is GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        if element is not GGUFValueType.STRING:
            layout = np.dtype(NUMBERS[element])
            numbers = np.frombuffer(self._take(length * layout.itemsize), layout).tolist()
            return Value(numbers, GGUFValueType.ARRAY, element)
        strings = [self._string() for _ in range(length)]
        try:
            return Value([string.decode("utf-8") for string in strings], GGUFValueType.ARRAY, element)
        except UnicodeDecodeError:  # a token may be a part of a character
            return Value(strings, GGUFValueType.ARRAY, element)
