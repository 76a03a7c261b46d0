"""Read safetensors files: one file, or shards with an index.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian header length, then a JSON
header that maps each name to dtype, shape and the half-open byte range of its data after the header. The headers are
checked before any weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tritgguf.converter.core.dtypes import FLOAT_DTYPES, ITEM_BYTES
from tritgguf.converter.core.floats import EIGHT_BITS, checked, widened8
from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.core.system import mapped
from tritgguf.converter.core.tensors import ByteArray, Float32Array, Floats, RowIndices, SourceTensor, span
from tritgguf.converter.errors import SourceError, TensorError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class SafetensorsTensor(SourceTensor):
    """One tensor of a memory-mapped file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    data: ByteArray

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        n_rows = math.prod(self.shape[:-1])
        return [self.data.reshape(n_rows, -1)[span(rows, n_rows)].reshape(-1)] if self.data.size else []

    def floats(self, rows: slice | RowIndices) -> Floats:
        row_length = self.shape[-1] if self.shape else 1
        if self.dtype in EIGHT_BITS:
            return widened8(self.data.reshape(-1, row_length)[rows], self.dtype)
        if self.dtype not in FLOAT_DTYPES:
            raise SourceError(
                f"{self.file.name}: tensor {self.name} holds {self.dtype}; expected BF16, F16 or F32 "
                "(config.json names no packing of such weights: fetch it again, or give the unpacked checkpoint)"
            )
        stored = self.data.view(FLOAT_DTYPES[self.dtype].words).reshape(-1, row_length)[rows]
        return Floats(np.ascontiguousarray(stored), self.dtype)

    def read(self, rows: slice | RowIndices) -> Float32Array:
        values, all_finite = checked(self.floats(rows))
        if not all_finite:
            self._refuse(values, rows)
        return values

    def _refuse(self, values: Float32Array, rows: slice | RowIndices) -> NoReturn:
        """Raise TensorError that names the first NaN or Inf."""
        finite = np.isfinite(values)
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        row = int(rows[row]) if isinstance(rows, np.ndarray) else row + (rows.start or 0)
        raise TensorError(
            f"{self.file.name}: tensor {self.name} has {(~finite).sum()} NaN or Inf values among the rows read, the "
            f"first at row {row}, column {column}; expected finite weights: the checkpoint is damaged, fetch it again"
        )


def matches(folder: Path) -> bool:
    """Return whether the folder holds safetensors files under the names that transformers looks for."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def read_tensors(folder: Path) -> dict[str, SafetensorsTensor]:
    """Return every tensor of the folder by name; no weight is read. Raise SourceError if a file is damaged."""
    if (folder / SINGLE).exists():
        return read_file(folder / SINGLE)
    weight_map = _read_index(folder / INDEX)
    shards = {name: read_file(_shard_path(folder, name)) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise SourceError(f"{INDEX} says that {shard} holds {tensor}, but it doesn't: fetch the checkpoint again")
    tensors: dict[str, SafetensorsTensor] = {}
    for shard, content in shards.items():
        for name, tensor_in_shard in content.items():
            if name in tensors:
                raise SourceError(f"{shard} and {tensors[name].file.name} both hold {name}: fetch the checkpoint again")
            tensors[name] = tensor_in_shard
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_object(path, SourceError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{path.name} has no weight_map: fetch the checkpoint again")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise SourceError(f"{path.name}: weight_map must map names to file names")
    return weight_map


def _shard_path(folder: Path, name: str) -> Path:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise SourceError(
            f"{INDEX} names the shard {name!r}, which lies outside the folder; expected a plain file name"
        )
    path = folder / name
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        found = False
    if not found:
        raise SourceError(f"{INDEX} names the shard {name}, which isn't in the folder: fetch the missing file")
    return path


def read_file(path: Path) -> dict[str, SafetensorsTensor]:
    """Return the tensors of one file by name; no weight is read. Raise SourceError that names what is damaged."""
    try:
        file_bytes = path.stat().st_size
        if file_bytes < 8:
            raise SourceError(f"{path.name} has {file_bytes} bytes, too few for a safetensors file: fetch it again")
        data = mapped(path)
    except OSError as error:
        raise SourceError(f"{path.name} can't be read: {error.strerror or error}") from error
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
        raise SourceError(
            f"{path.name}: the header claims {header_bytes} bytes, but the file has {file_bytes}: "
            "it is truncated or isn't a safetensors file; fetch it again"
        )
    header = _parse_header(path, data[8 : 8 + header_bytes].tobytes())
    body = data[8 + header_bytes :]
    ranges = {name: _checked_range(path, name, entry) for name, entry in header.items()}
    _require_contiguous(path, ranges, len(body))
    return {
        name: SafetensorsTensor(name, header[name]["dtype"], tuple(header[name]["shape"]), path, body[start:stop])
        for name, (start, stop) in ranges.items()
    }


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


def _checked_range(path: Path, name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return the byte range of one tensor after checking dtype, shape and size against each other."""
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
    return start, stop


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
