"""Check a GGUF file's keys before the native library loads it.

For some damaged files the native library ends the whole process, for others its only message is "failed to load
model". The checks that cost little are done here first.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from gguf import GGUFValueType, Keys

from tritgguf.converter.errors import EngineError, TritggufError, UnsupportedError
from tritgguf.converter.gguf_io import parts
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor
from tritgguf.converter.gguf_io.hadamard import convert_first, is_rotated
from tritgguf.converter.gguf_io.header_reader import MAGIC, PREAMBLE, HeaderReader, map_file
from tritgguf.converter.gguf_io.metadata import Scalar
from tritgguf.converter.gguf_io.reader import read_gguf

TOKENS_KEY = Keys.Tokenizer.LIST
_KV_HEADS = ".attention.head_count_kv"
# Outside of these, llama.cpp fails an assertion or takes a number for a negative one.
_SANE = {
    "block_count": (1, 512),
    "context_length": (2, 2**31 - 1),
    "attention.layer_norm_epsilon": (0.0, 1.0),
    "attention.layer_norm_rms_epsilon": (0.0, 1.0),
}


@dataclass(frozen=True)
class Header:
    """A file's keys: `values` without the arrays, `tokens` the vocabulary; `values_end` is the byte after the keys.

    `kv_heads` is each layer's number of key and value heads, where the file tells it for each layer; `basis` a key that
    says that the weights are in a Hadamard basis.
    """

    version: int
    values: Mapping[str, Scalar]
    tokens: Sequence[bytes]
    values_end: int
    kv_heads: Sequence[int] = ()
    basis: str | None = None

    def value(self, key: str) -> object:
        """Return a key's value, None if the file hasn't that key."""
        return self.values.get(key)


class _Arrays(Container[str]):
    """The keys whose arrays are read."""

    def __contains__(self, key: object) -> bool:
        return key == TOKENS_KEY or (
            isinstance(key, str) and (key.endswith(_KV_HEADS) or is_rotated((key,)) is not None)
        )


def read_header(path: Path) -> Header:
    """Read the keys of the GGUF file at `path`; EngineError where they are damaged.

    The descriptions of the tensors aren't read: they may have types that gguf's Python package doesn't know, and their
    data may not be written yet.
    """
    try:
        with map_file(path) as data:
            reader = HeaderReader(path, data, text="bytes")
            metadata = reader.metadata(arrays=_Arrays())
            version, values_end, basis = reader.version, reader.position, is_rotated(metadata)
    except TritggufError as error:
        raise EngineError(str(error)) from error
    arrays = {key: metadata.pop(key) for key, value in [*metadata.items()] if value.element is not None}
    values = {key: cast("Scalar", value.data) for key, value in metadata.items()}
    vocabulary, kv_heads = arrays.get(TOKENS_KEY), arrays.get(f"{values.get('general.architecture')}{_KV_HEADS}")
    tokens: Sequence[bytes] = ()
    if vocabulary is not None and vocabulary.element is GGUFValueType.STRING:
        tokens = cast("Sequence[bytes]", vocabulary.data)
    numbers = cast("Sequence[object]", kv_heads.data) if kv_heads is not None else ()
    per_layer = [number for number in numbers if isinstance(number, int)]
    return Header(version, values, tokens, values_end, per_layer, basis)


def vocabulary_only(path: Path, header: Header) -> bytes:
    """Return the bytes of a GGUF file with the key-value pairs of the file at `path` and no tensors.

    The native library checks that the file has every tensor's data even when it loads only the vocabulary, so it would
    refuse a file whose data isn't written yet.
    """
    with path.open("rb") as file:
        data = file.read(header.values_end)
    n_values = PREAMBLE.unpack_from(data, 0)[3]
    return PREAMBLE.pack(MAGIC, header.version, 0, n_values) + _as_one_part(data[PREAMBLE.size :])


def _as_one_part(values: bytes) -> bytes:
    """Set the number of parts to 1 in the key-value pairs: the native library would look for the other parts."""
    key = struct.pack("<Q", len(parts.COUNT)) + parts.COUNT.encode() + struct.pack("<I", GGUFValueType.UINT16)
    before, found, after = values.partition(key)
    return before + found + struct.pack("<H", 1) + after[2:] if found else values


def check_loadable(path: Path, header: Header) -> None:
    """Raise EngineError for files on which the native library would end the process instead of failing."""
    number, n_parts = header.values.get(parts.NUMBER, 0), header.values.get(parts.COUNT, 1)
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
        raise EngineError(f"{path}: token {twice!r} appears in {TOKENS_KEY} more than once; convert the model again")
    if header.values.get("tokenizer.ggml.model") == "llama":
        missing = [f"<0x{byte:02X}>" for byte in range(256) if not known & {b"<0x%02X>" % byte, bytes([byte])}]
        if missing:
            raise EngineError(f"{path}: no byte token {missing[0]}: text with that byte can't be tokenized")


def check_weights(path: Path, header: Header) -> None:
    """Raise EngineError for files whose weights the native library would take for others."""
    if header.basis is not None:
        raise EngineError(convert_first(path.name, header.basis))


def why_not_loaded(path: Path) -> str | None:
    """Return the reason why the native library couldn't load the file, where the tensors' types are it."""
    try:
        read_gguf(path).stock_tensors()
    except UnsupportedError as error:
        return str(error)
    except TritggufError:
        return None
    return None


def multiplied_tensors(path: Path) -> list[GgufTensor]:
    """Return the matrices that are multiplied: rows of the embeddings are looked up where there is an output layer."""
    try:
        tensors = read_gguf(path).stock_tensors()
    except TritggufError:  # llama.cpp says what is wrong with it
        return []
    rows = "token_embd.weight" if "output.weight" in tensors else ""
    return [tensor for name, tensor in tensors.items() if len(tensor.shape) > 1 and name != rows]


def _check_numbers(path: Path, header: Header) -> None:
    architecture = header.values["general.architecture"]
    for name, (low, high) in _SANE.items():
        number = header.values.get(f"{architecture}.{name}", low)
        if isinstance(number, str) or not low <= number <= high:
            raise EngineError(
                f"{path}: {architecture}.{name} is {number!r}, expected {low} to {high}; convert it again"
            )
