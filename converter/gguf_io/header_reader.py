"""The one reader of GGUF headers: the preamble, the keys with their values, the descriptions of the tensors.

Every kind of damage has one message here, whichever command meets it. gguf's own reader isn't used: it keeps an array
view per string, which takes seconds for a vocabulary of 150,000 tokens, it never ends on an array whose claimed length
lies beyond the file, and it needs the tensor data, which isn't written yet when a new file's token ids are checked.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from gguf import GGUFValueType

from tritgguf.converter.core import system
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import NUMBER_DTYPES, Metadata, Scalar, Value

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class TensorDescription(NamedTuple):
    """One tensor as the header describes it: `shape` has rows before columns, `offset` counts from the data's start.

    `number` is that of its type; tensor_types.py tells what it means.
    """

    number: int
    shape: tuple[int, ...]
    offset: int


def map_file(path: Path) -> mmap.mmap:
    """Map a file that must be GGUF into memory; raise SourceError where it can't be opened or begins otherwise."""
    if path.is_dir():
        raise SourceError(
            f"{path}: is a folder, expected a GGUF file (`tritgguf convert` makes one from a model folder)"
        )
    if path.exists() and not path.is_file():
        raise SourceError(
            f"{path}: isn't a regular file; a GGUF file is mapped into memory, so a pipe or device won't do"
        )
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                raise SourceError(f"{path}: not a GGUF file (it starts with {start!r}, expected {MAGIC!r})")
        return system.map_file(path)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except OSError as error:
        raise SourceError(f"{path}: can't be read ({error.strerror or error})") from error


class HeaderReader:
    """Reads one header from its start to its end: `metadata`, then `tensors`; `position` is the next byte to read.

    `text` "bytes" leaves arrays of strings undecoded and replaces what isn't UTF-8 in single strings: enough for a
    program that only looks at the file. "utf-8" decodes both; an array with an invalid string stays bytes, since a
    token may be part of a character, a single invalid string is an error.

    Raises SourceError where the header is damaged, UnsupportedError for other versions and big-endian files.
    """

    def __init__(self, path: Path, data: mmap.mmap | bytes, *, text: Literal["utf-8", "bytes"] = "utf-8") -> None:
        self.path = path
        self.data = data
        self.position = PREAMBLE.size
        self._decodes = text == "utf-8"
        with self.damage():
            _, self.version, self.n_tensors, self._n_keys = PREAMBLE.unpack_from(data, 0)
        if self.version not in VERSIONS:
            what = "a big-endian GGUF file" if self.version & 0xFFFF == 0 else f"of GGUF version {self.version}"
            raise UnsupportedError(f"{path}: is {what}; expected GGUF version 2 or 3, little-endian")

    @contextmanager
    def damage(self) -> Iterator[None]:
        """Turn a ValueError, or a read beyond the end of the file, into the one message for damaged headers."""
        try:
            yield
        except (struct.error, OverflowError, ValueError) as error:
            what = error if isinstance(error, ValueError) else "the file ends inside it"
            raise SourceError(
                f"{self.path}: the header is damaged or cut off ({what}); fetch or convert the file again"
            ) from error

    def metadata(self, arrays: Container[str] | None = None) -> Metadata:
        """Read all keys with their values; where `arrays` is given, arrays under other keys are skipped."""
        found: Metadata = {}
        seen: set[str] = set()
        with self.damage():
            for _ in range(self._n_keys):
                key = _unique(self._name(), seen, "key")
                kind = self._value_type()
                if kind is not GGUFValueType.ARRAY:
                    found[key] = Value(self._scalar(kind), kind)
                elif (value := self._array(skip=arrays is not None and key not in arrays)) is not None:
                    found[key] = value
        return found

    def tensors(self) -> dict[str, TensorDescription]:
        """Read the descriptions of all tensors, by name."""
        found: dict[str, TensorDescription] = {}
        seen: set[str] = set()
        with self.damage():
            for _ in range(self.n_tensors):
                name = _unique(self._name(), seen, "tensor")
                found[name] = self._description(name)
        return found

    def _description(self, name: str) -> TensorDescription:
        n_dimensions = self._number(_U32)
        if n_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {n_dimensions} dimensions, expected at most {MAX_DIMENSIONS}")
        shape = tuple(reversed([self._number(_U64) for _ in range(n_dimensions)])) or (1,)
        number, offset = self._number(_U32), self._number(_U64)
        if 0 in shape:
            raise ValueError(f"tensor {name!r} of shape {shape} has no values, which doesn't fit any type")
        return TensorDescription(number, shape, offset)

    def _number(self, layout: struct.Struct) -> int:
        number: int = layout.unpack_from(self.data, self.position)[0]
        self.position += layout.size
        return number

    def _value_type(self) -> GGUFValueType:
        number = self._number(_U32)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise ValueError(f"a value has type {number}, which GGUF doesn't have") from None

    def _advance(self, n_bytes: int) -> slice:
        """Move behind the next `n_bytes` and return where they are; struct.error where the file ends before."""
        start, self.position = self.position, self.position + n_bytes
        if self.position > len(self.data):
            raise struct.error
        return slice(start, self.position)

    def _string(self) -> bytes:
        return self.data[self._advance(self._number(_U64))]

    def _name(self) -> str:
        stored = self._string()
        try:
            name = stored.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the name {stored!r:.80} isn't UTF-8") from None
        if not name.isprintable():
            raise ValueError(f"the name {name!r:.80} has characters that can't be printed")
        return name

    def _scalar(self, kind: GGUFValueType) -> Scalar:
        if kind is GGUFValueType.STRING:
            return self._text()
        layout = np.dtype(NUMBER_DTYPES[kind])
        number: Scalar = np.frombuffer(self.data[self._advance(layout.itemsize)], layout)[0].item()
        return number

    def _text(self) -> str:
        stored = self._string()
        try:
            return stored.decode("utf-8", "strict" if self._decodes else "replace")
        except UnicodeDecodeError:
            raise ValueError(f"the text {stored!r:.80} isn't UTF-8") from None

    def _array(self, *, skip: bool) -> Value | None:
        """Read an array, or step over it and return None."""
        element, length = self._value_type(), self._number(_U64)
        if element is GGUFValueType.ARRAY:
            raise ValueError("an array holds arrays, which no key of a model does")
        if element is not GGUFValueType.STRING:
            layout = np.dtype(NUMBER_DTYPES[element])
            place = self._advance(length * layout.itemsize)
            if skip:
                return None
            return Value(np.frombuffer(self.data[place], layout).tolist(), GGUFValueType.ARRAY, element)
        if length * _U64.size > len(self.data) - self.position:
            raise struct.error
        if skip:
            self._skip_strings(length)
            return None
        strings = self._strings(length)
        if not self._decodes:
            return Value(strings, GGUFValueType.ARRAY, element)
        try:
            return Value([string.decode("utf-8") for string in strings], GGUFValueType.ARRAY, element)
        except UnicodeDecodeError:
            return Value(strings, GGUFValueType.ARRAY, element)

    # Vocabularies have hundreds of thousands of strings: these two loops are most of the time that a header takes.

    def _strings(self, count: int) -> list[bytes]:
        data, end, length_at, length_bytes = self.data, self.position, _U64.unpack_from, _U64.size
        strings = []
        for _ in range(count):
            start = end + length_bytes
            end = start + length_at(data, end)[0]
            strings.append(data[start:end])
        self._advance(end - self.position)
        return strings

    def _skip_strings(self, count: int) -> None:
        data, end, length_at, length_bytes = self.data, self.position, _U64.unpack_from, _U64.size
        for _ in range(count):
            end += length_bytes + length_at(data, end)[0]
        self._advance(end - self.position)


def _unique(name: str, seen: set[str], what: str) -> str:
    if name in seen:
        raise ValueError(f"{what} {name!r} appears twice")
    seen.add(name)
    return name
