"""Write a GGUF file's header as bytes.

gguf's own writer isn't used: it packs value by value, which takes half a second for a vocabulary of 150,000 tokens.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from gguf import GGUF_VERSION, GGUFValueType, Keys

from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.header_reader import MAGIC
from tritgguf.converter.gguf_io.metadata import NUMBER_DTYPES, Metadata, Value

ALIGNMENT = 32
LENGTH_BYTES = 8  # every string begins with its length


class TensorEntry(NamedTuple):
    """One tensor's description in the header: `shape` has rows before columns, `n_bytes` is the size of its data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    n_bytes: int


def aligned(n_bytes: int) -> int:
    """Return `n_bytes` rounded up to GGUF's alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def header_bytes(metadata: Metadata, tensors: Sequence[TensorEntry]) -> bytes:
    """Return a file's bytes up to the padding before the first tensor, with a model's architecture as the first key.

    Raises SourceError where a text isn't valid Unicode: JSON can escape one half of a surrogate pair.
    """
    architecture = {key: value for key, value in metadata.items() if key == Keys.General.ARCHITECTURE}
    keys = architecture | metadata
    values = []
    for key, value in keys.items():
        try:
            values.append(_string(key) + struct.pack("<I", value.type) + _value(value))
        except UnicodeEncodeError as error:
            raise SourceError(
                f"{key} holds {error.object!r:.80}, which isn't valid Unicode: fetch the model's JSON files again"
            ) from error
    counts = struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(keys))
    return b"".join([MAGIC, counts, *values, *_entries(tensors)])


def entry_bytes(tensor: TensorEntry) -> int:
    """Return the size of a tensor's description in the header, in bytes."""
    return sum(map(len, _entries([tensor])))


def _entries(tensors: Sequence[TensorEntry]) -> Iterator[bytes]:
    """Yield each tensor's name, number of dimensions, dimensions (columns first), type and offset."""
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.ggml_type, offset)
        yield _string(tensor.name) + numbers
        offset += aligned(tensor.n_bytes)


def _value(value: Value) -> bytes:
    if value.type is not GGUFValueType.ARRAY:
        return _string(value.data) if isinstance(value.data, str) else _numbers([value.data], value.type)
    assert value.element is not None
    assert isinstance(value.data, Sequence)
    start = struct.pack("<IQ", value.element, len(value.data))
    if value.element is GGUFValueType.STRING:
        return start + _strings(value.data)
    return start + _numbers(value.data, value.element)


def _strings(texts: Sequence[object]) -> bytes:
    """Return texts, each after its length; a vocabulary has hundreds of thousands, so together where that works."""
    if packed := _packed_together(texts):
        return packed
    return b"".join(_string(text if isinstance(text, bytes) else str(text)) for text in texts)


def _packed_together(texts: Sequence[object]) -> bytes | None:
    """Join texts with eight zero bytes before each, then write the lengths over the zeros, with numpy.

    None where a text is empty, contains zeros or invalid Unicode, or is bytes: then the zeros can't be told apart.
    """
    if set(map(type, texts)) != {str}:
        return None
    gap = "\0" * LENGTH_BYTES
    try:
        packed = np.frombuffer(bytearray((gap + gap.join(cast("Sequence[str]", texts))).encode()), np.uint8)
    except UnicodeEncodeError:
        return None
    is_zero = packed == 0
    starts = np.flatnonzero(np.diff(is_zero, prepend=False) & is_zero)
    if len(starts) != len(texts) or is_zero.sum() != LENGTH_BYTES * len(texts):
        return None
    lengths, place = np.diff(starts, append=len(packed)) - LENGTH_BYTES, 0
    while lengths.any():
        packed[starts + place] = lengths & 0xFF
        lengths, place = lengths >> 8, place + 1
    return packed.tobytes()


def _numbers(numbers: Sequence[object], kind: GGUFValueType) -> bytes:
    return np.array(numbers, NUMBER_DTYPES[kind]).tobytes()


def _string(text: str | bytes) -> bytes:
    encoded = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
