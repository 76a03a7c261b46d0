"""Weights of which only the headers are here: safetensors files cut off behind them, in a model folder's `headers`.

They are enough to plan from, and whoever makes such a folder need not have fetched more, whatever the files' sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tritgguf.converter.checkpoint.safetensors_reader import INDEX, SINGLE, read_header
from tritgguf.converter.checkpoint.shards import read_shards
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import ITEM_BYTES
from tritgguf.converter.core.tensors import ByteArray, Floats, RowIndices
from tritgguf.converter.errors import SourceError

FOLDER = "headers"


class DescribedTensor(StoredTensor):
    """A tensor that a header describes, and whose values aren't here: reading some raises SourceError."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return []

    def floats(self, rows: slice | RowIndices) -> Floats:
        raise SourceError(f"{self.file.name}: only its header is here, so {self.name} can't be read: fetch the file")


def matches(folder: Path) -> bool:
    """Return whether the folder holds headers."""
    return (folder / FOLDER).is_dir()


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor that the headers describe, by name; raise SourceError if a header is damaged."""
    headers = folder / FOLDER
    if (headers / SINGLE).exists():
        return _read_file(headers / SINGLE)
    return read_shards(headers / INDEX, _read_file)


def only_described(tensors: Mapping[str, StoredTensor]) -> bool:
    """Return whether only headers of the tensors are here."""
    return any(isinstance(tensor, DescribedTensor) for tensor in tensors.values())


def _read_file(path: Path) -> dict[str, StoredTensor]:
    described, _ = read_header(path)
    nothing = np.empty(0, np.uint8)
    return {name: DescribedTensor(name, entry.dtype, entry.shape, path, nothing) for name, entry in described.items()}
