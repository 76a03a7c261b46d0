"""Read safetensors files: one file, or shards with an index.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian header length, then a JSON
header that maps each name to dtype, shape and the half-open byte range of its data after the header. The headers are
checked before any weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tritgguf.converter.checkpoint.shards import read_shards
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import ITEM_BYTES
from tritgguf.converter.core.system import ByteArray, mapped
from tritgguf.converter.errors import SourceError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LENGTH_BYTES = 8  # of the number before the header
MAX_HEADER_BYTES = 100_000_000


class Described(NamedTuple):
    """One tensor as a header describes it; `place` is the range of its bytes behind the header, half-open."""

    dtype: str
    shape: tuple[int, ...]
    place: tuple[int, int]


def matches(folder: Path) -> bool:
    """Return whether the folder holds safetensors files under the names that transformers looks for."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder by name; no weight is read. Raise SourceError if a file is damaged."""
    if (folder / SINGLE).exists():
        return read_file(folder / SINGLE)
    return read_shards(folder / INDEX, read_file)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name; no weight is read. Raise SourceError that names what is damaged."""
    described, body = read_header(path)
    _require_contiguous(path, {name: entry.place for name, entry in described.items()}, len(body))
    return {
        name: StoredTensor(name, entry.dtype, entry.shape, path, body[slice(*entry.place)])
        for name, entry in described.items()
    }


def read_header(path: Path) -> tuple[dict[str, Described], ByteArray]:
    """Return what a file's header says of its tensors, and the bytes behind it; raise SourceError for damage."""
    try:
        file_bytes = path.stat().st_size
        if file_bytes < LENGTH_BYTES:
            raise SourceError(f"{path.name} has {file_bytes} bytes, too few for a safetensors file: fetch it again")
        data = mapped(path)
    except OSError as error:
        raise SourceError(f"{path.name} can't be read: {error.strerror or error}") from error
    header_bytes = int.from_bytes(data[:LENGTH_BYTES].tobytes(), "little")
    if header_bytes > min(file_bytes - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise SourceError(
            f"{path.name}: the header claims {header_bytes} bytes, but the file has {file_bytes}: "
            "it is truncated or isn't a safetensors file; fetch it again"
        )
    end = LENGTH_BYTES + header_bytes
    header = _parse_header(path, data[LENGTH_BYTES:end].tobytes())
    return {name: _checked(path, name, entry) for name, entry in header.items()}, data[end:]


def _parse_header(path: Path, blob: bytes) -> dict[str, dict[str, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} appears twice")
        return dict(pairs)

    try:
        header = json.loads(blob.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path.name}: the header isn't valid JSON ({error}): fetch the file again") from error
    if not isinstance(header, dict):
        raise SourceError(f"{path.name}: the header isn't a JSON object: fetch the file again")
    header.pop("__metadata__", None)
    return header


def _checked(path: Path, name: str, entry: Mapping[str, Any]) -> Described:
    """Return a tensor's entry after checking dtype, shape and size against each other."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        valid = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and isinstance(dtype, str)
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise SourceError(f"{path.name}: the header entry of {name} isn't dtype, shape and data_offsets")
    if dtype not in ITEM_BYTES:
        raise SourceError(f"{path.name}: tensor {name} has the unknown dtype {dtype}; expected BF16, F16 or F32")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if stop - start != expected:
        raise SourceError(
            f"{path.name}: tensor {name} of shape {shape} in {dtype} needs {expected} bytes, "
            f"but its data_offsets span {stop - start}: fetch the file again"
        )
    return Described(dtype, tuple(shape), (start, stop))


def _require_contiguous(path: Path, ranges: Mapping[str, tuple[int, int]], body_bytes: int) -> None:
    """Check that the byte ranges cover the file's body exactly once, as the format demands."""
    end, previous = 0, "the header"
    for name, (start, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if start != end:
            what = "overlaps" if start < end else "leaves a hole after"
            raise SourceError(f"{path.name}: the data of {name} {what} {previous}: fetch the file again")
        end, previous = stop, name
    if end > body_bytes:
        raise SourceError(
            f"{path.name} is truncated: its header lists {end} bytes of tensors, the file has {body_bytes}: "
            "fetch it again"
        )
    if end < body_bytes:
        raise SourceError(f"{path.name} has {body_bytes - end} bytes after its last tensor: fetch it again")
