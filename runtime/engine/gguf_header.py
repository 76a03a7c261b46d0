"""The part of a GGUF file before the tensor data, read without the native library.

The native library aborts the whole process, or only says "failed to load model", for some damaged files; what is cheap
to check is checked here first. gguf-py's reader isn't used because it refuses tensor types newer than itself and needs
the tensor data to be there. Layout: docs/gguf.md in the ggml repository.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFValueType

from tritgguf.converter.errors import EngineError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SPLIT_NUMBER, SPLIT_COUNT = "split.no", "split.count"
TOKENS_KEY = "tokenizer.ggml.tokens"

_PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of key-value pairs
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: _U32,
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: _U64,
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
# Outside of these, llama.cpp fails an assertion or takes a number for a negative one.
_SANE = {
    "block_count": (1, 512),
    "context_length": (2, 2**31 - 1),
    "attention.layer_norm_epsilon": (0.0, 1.0),
    "attention.layer_norm_rms_epsilon": (0.0, 1.0),
}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself; arrays appear by length only, except the tokens."""

    version: int
    n_tensors: int
    values: dict[str, int | float | bool | str]
    array_lengths: dict[str, int]
    tokens: tuple[bytes, ...]
    values_end: int  # byte offset of the first tensor description


def read_header(path: Path) -> Header:
    """Read and check the header of the GGUF file at `path`; EngineError if it isn't a whole GGUF header."""
    with _mapped(path) as data:
        if len(data) < _PREAMBLE.size or data[:4] != MAGIC:
            raise EngineError(f"{path}: not a GGUF file (it starts with {bytes(data[:4])!r}, expected {MAGIC!r})")
        _, version, n_tensors, n_values = _PREAMBLE.unpack_from(data, 0)
        if version not in VERSIONS:
            raise EngineError(
                f"{path}: GGUF version {version} (expected 2 or 3, little-endian): convert the model again"
            )
        try:
            return _Cursor(data, _PREAMBLE.size).header(version, n_tensors, n_values)
        except (struct.error, ValueError, IndexError) as error:
            raise EngineError(
                f"{path}: the header is damaged or cut off ({error}); copy or convert the file again"
            ) from error


def vocabulary_only(path: Path, header: Header) -> bytes:
    """The bytes of a GGUF file with the same key-value pairs as the file at `path`, whose header it is, and no tensors.

    The native library checks the extent of every tensor even when only the vocabulary is asked for, so a file whose
    tensor data isn't written yet can't be given to it as it is.
    """
    with path.open("rb") as file:
        data = file.read(header.values_end)
    n_values = _PREAMBLE.unpack_from(data, 0)[3]
    return _PREAMBLE.pack(MAGIC, header.version, 0, n_values) + _as_one_part(data[_PREAMBLE.size :])


def _as_one_part(values: bytes) -> bytes:
    """The key-value pairs with the number of parts set to 1: the native library would look for the others."""
    key = _U64.pack(len(SPLIT_COUNT)) + SPLIT_COUNT.encode() + _U32.pack(GGUFValueType.UINT16)
    before, found, after = values.partition(key)
    return before + found + struct.pack("<H", 1) + after[2:] if found else values


def check_loadable(path: Path, header: Header) -> None:
    """EngineError for files on which the native library would abort the process instead of failing."""
    number, n_parts = header.values.get(SPLIT_NUMBER, 0), header.values.get(SPLIT_COUNT, 1)
    if number != 0:
        raise EngineError(f"{path}: is part {int(number) + 1} of {n_parts} of a model; give the first part")
    if not isinstance(header.values.get("general.architecture"), str):
        raise EngineError(f"{path}: no general.architecture (a model file has one); convert the model again")
    _check_numbers(path, header)
    if not header.tokens:
        raise EngineError(f"{path}: no vocabulary ({TOKENS_KEY} is missing or empty); convert the model again")
    # As llama.cpp reads them: a token ends at a NUL byte, and empty ones get names of their own.
    tokens = [token for token in (token.split(b"\0", 1)[0] for token in header.tokens) if token]
    known = set(tokens)
    if len(known) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0].decode("utf-8", "replace")
        raise EngineError(f"{path}: token {twice!r} stands in {TOKENS_KEY} more than once; convert the model again")
    if header.values.get("tokenizer.ggml.model") == "llama":
        missing = [f"<0x{byte:02X}>" for byte in range(256) if not known & {b"<0x%02X>" % byte, bytes([byte])}]
        if missing:
            raise EngineError(f"{path}: no byte token {missing[0]}: text with that byte can't be tokenized")


def _check_numbers(path: Path, header: Header) -> None:
    architecture = header.values["general.architecture"]
    for name, (low, high) in _SANE.items():
        number = header.values.get(f"{architecture}.{name}", low)
        if isinstance(number, str) or not low <= number <= high:
            raise EngineError(
                f"{path}: {architecture}.{name} is {number!r}, expected {low} to {high}; convert it again"
            )


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The file's bytes, mapped; a missing file, a folder or an unreadable file is an EngineError."""
    if path.is_dir():
        raise EngineError(
            f"{path}: is a folder, expected a GGUF file (`tritgguf convert` makes one from a model folder)"
        )
    if path.exists() and not path.is_file():
        raise EngineError(
            f"{path}: isn't a regular file; a GGUF file is mapped into memory, so a pipe or device won't do"
        )
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise EngineError(f"{path}: no such file") from None
    except OSError as error:
        raise EngineError(f"{path}: can't be read ({error.strerror})") from error
    with file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


class _Cursor:
    """A read position in the header's bytes; running over the end raises struct.error or ValueError."""

    def __init__(self, data: mmap.mmap | bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def header(self, version: int, n_tensors: int, n_values: int) -> Header:
        values: dict[str, int | float | bool | str] = {}
        lengths: dict[str, int] = {}
        tokens: tuple[bytes, ...] = ()
        for _ in range(n_values):
            key = self.string().decode("utf-8")
            kind = GGUFValueType(self.number(_U32))
            if kind is not GGUFValueType.ARRAY:
                values[key] = self.value(kind)
                continue
            element, length = GGUFValueType(self.number(_U32)), self.number(_U64)
            lengths[key] = length
            if key == TOKENS_KEY and element is GGUFValueType.STRING:
                tokens = tuple(self.data[start:end] for start, end in self.strings(length))
            else:
                self.skip(element, length)
        return Header(version, n_tensors, values, lengths, tokens, self.offset)

    def number(self, layout: struct.Struct) -> int:
        number: int = layout.unpack_from(self.data, self.offset)[0]
        self.offset += layout.size
        return number

    def string(self) -> bytes:
        ((start, end),) = self.strings(1)
        return self.data[start:end]

    def strings(self, n: int) -> Iterator[tuple[int, int]]:
        """Yield where each of n strings starts and ends; a vocabulary has hundreds of thousands."""
        data, end, n_bytes = self.data, self.offset, len(self.data)
        length_at, length_bytes = _U64.unpack_from, _U64.size
        for _ in range(n):
            start = end + length_bytes
            end = start + length_at(data, end)[0]
            if end > n_bytes:
                raise ValueError(f"a string ends at byte {end} of {n_bytes}")
            yield start, end
        self.offset = end

    def value(self, kind: GGUFValueType) -> int | float | bool | str:
        return self.string().decode("utf-8", "replace") if kind is GGUFValueType.STRING else self.number(_SCALARS[kind])

    def skip(self, element: GGUFValueType, length: int) -> None:
        if element is GGUFValueType.STRING:
            for _ in self.strings(length):
                pass
        elif element in _SCALARS:
            self.offset += length * _SCALARS[element].size
            if self.offset > len(self.data):
                raise ValueError(f"an array ends at byte {self.offset} of {len(self.data)}")
        else:
            raise ValueError(f"array elements of type {element.name}")
