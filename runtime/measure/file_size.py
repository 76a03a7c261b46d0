"""A GGUF file's size: bytes, and bits per weight of the whole file and of its linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.gguf import LINEAR

_SCALE, _WEIGHT = ".scale", ".weight"


@dataclass(frozen=True)
class FileSize:
    """`file_bytes` counts all parts of a file; `linear_bits` is None where no tensor is known to be a linear layer.

    `bits_per_weight` counts every byte of the file, `linear_bits` the data of linear layers and their scales.
    """

    file_bytes: int
    n_weights: int
    bits_per_weight: float
    linear_bits: float | None


def file_size(path: Path) -> FileSize:
    """Return the size of a GGUF file, in one part or several; TritggufError where it is damaged."""
    file = read_gguf(path)
    linear_bytes = n_linear = 0
    for name, tensor in file.tensors.items():
        if LINEAR.match(name):
            n_linear += math.prod(tensor.shape)
            linear_bytes += tensor.n_bytes
        elif name.endswith(_SCALE) and LINEAR.match(name.removesuffix(_SCALE) + _WEIGHT):
            linear_bytes += tensor.n_bytes
    n_weights = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    if not n_weights:
        raise SourceError(f"{path}: has no tensors, such as a file with a vocabulary alone; name a model")
    return FileSize(
        file_bytes=file.file_bytes,
        n_weights=n_weights,
        bits_per_weight=8 * file.file_bytes / n_weights,
        linear_bits=8 * linear_bytes / n_linear if n_linear else None,
    )
