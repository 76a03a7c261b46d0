"""Read a GGUF file of any architecture: its typed metadata, and its tensors, read as rows of floats.

Everything is checked before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from gguf import Keys

from tritgguf.converter.core.tensors import ByteArray
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io import parts
from tritgguf.converter.gguf_io.foreign_type import ForeignTensor, loaders
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor
from tritgguf.converter.gguf_io.hadamard import convert_first, is_rotated
from tritgguf.converter.gguf_io.header_reader import MAGIC, HeaderReader, TensorDescription, map_file
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.gguf_io.tensor_types import TensorType, tensor_types

DEFAULT_ALIGNMENT = 32
AnyTensor: TypeAlias = GgufTensor | ForeignTensor


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: its typed metadata in the file's order, and its tensors by name."""

    path: Path
    metadata: Metadata = field(repr=False)
    tensors: Mapping[str, AnyTensor] = field(repr=False)
    file_bytes: int
    parts: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, or all of its parts in order."""
        return self.parts or (self.path,)

    def value(self, key: str, default: object = None) -> object:
        """Return a key's value without its type, or `default`."""
        return self.metadata[key].data if key in self.metadata else default

    @property
    def foreign(self) -> tuple[ForeignTensor, ...]:
        """The tensors of types that no stock program reads."""
        return tuple(tensor for tensor in self.tensors.values() if isinstance(tensor, ForeignTensor))

    def stock_tensors(self) -> dict[str, GgufTensor]:
        """Return the tensors by name; raise UnsupportedError if only other programs read their weights."""
        if (key := is_rotated(self.metadata)) is not None:
            raise UnsupportedError(convert_first(self.path.name, key))
        for tensor in self.foreign:
            raise UnsupportedError(
                f"{self.path.name}: {len(self.foreign)} tensors such as {tensor.name} are {tensor.kind.numbered} of "
                f"{tensor.kind.origin}, which {loaders(tensor.kind)}; convert it first: tritgguf convert "
                f"{self.path.name} OUT.gguf"
            )
        return {name: tensor for name, tensor in self.tensors.items() if isinstance(tensor, GgufTensor)}

    @property
    def architecture(self) -> str | None:
        name = self.value(Keys.General.ARCHITECTURE)
        return name if isinstance(name, str) else None


def is_gguf(path: Path) -> bool:
    """Return whether the path is a file that begins with GGUF's magic bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; where it is one part of a model, open all parts as one file.

    Raises SourceError where a file is damaged or a part is missing, UnsupportedError for big-endian files, versions
    other than 2 and 3, and tensor types that are unknown or refused.
    """
    file = _read_file(path)
    n_parts = file.value(parts.COUNT, 1)
    if not isinstance(n_parts, int) or n_parts < 2:
        return file
    siblings = parts.sibling_paths(path, n_parts)
    if siblings is None:
        raise SourceError(
            f"{path.name} is one of {n_parts} parts of a model; expected a name like model-00001-of-{n_parts:05d}.gguf"
        )
    return _joined([_read_file(sibling) for sibling in siblings])


def _joined(files: Sequence[GgufFile]) -> GgufFile:
    """Return the parts of a model as one file, under the first part's path."""
    path = files[0].path
    tensors: dict[str, AnyTensor] = {}
    for number, part in enumerate(files):
        if (part.value(parts.NUMBER), part.value(parts.COUNT)) != (number, len(files)):
            raise SourceError(
                f"{part.path.name} claims to be part {part.value(parts.NUMBER)} of {part.value(parts.COUNT)}, "
                f"expected {number} of {len(files)}, counted from 0: it belongs to another model or was renamed"
            )
        if twice := tensors.keys() & part.tensors.keys():
            raise SourceError(f"{part.path.name} and another part both hold {min(twice)}: fetch the parts again")
        tensors |= part.tensors
    expected = files[0].value(parts.TENSOR_COUNT, len(tensors))
    if len(tensors) != expected:
        raise SourceError(f"{path.name} and its other parts hold {len(tensors)} tensors, expected {expected}")
    metadata = {key: value for key, value in files[0].metadata.items() if key not in parts.KEYS}
    return GgufFile(path, metadata, tensors, sum(part.file_bytes for part in files), tuple(part.path for part in files))


def _read_file(path: Path) -> GgufFile:
    data = map_file(path)
    header = HeaderReader(path, data)
    metadata, described = header.metadata(), header.tensors()
    with header.damage():
        alignment = _alignment(metadata)
    body = np.frombuffer(data, np.uint8)[-(-header.position // alignment) * alignment :]
    kinds = tensor_types(path, described, alignment, len(body))
    with header.damage():
        sizes = {name: _n_bytes(name, kinds[name], tensor.shape) for name, tensor in described.items()}
    _require_places(path, described, sizes, len(body))
    tensors = {}
    for name, (_, shape, offset) in described.items():
        tensors[name] = _tensor(path, name, kinds[name], shape, body[offset : offset + sizes[name]])
    return GgufFile(path, metadata, tensors, len(data))


def _tensor(path: Path, name: str, kind: TensorType, shape: tuple[int, ...], data: ByteArray) -> AnyTensor:
    if kind.foreign is not None:
        return kind.foreign.tensor(name, shape, path, data)
    return GgufTensor(name, kind.name, shape, path, data)


def _alignment(metadata: Metadata) -> int:
    alignment = metadata[Keys.General.ALIGNMENT].data if Keys.General.ALIGNMENT in metadata else DEFAULT_ALIGNMENT
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{Keys.General.ALIGNMENT} is {alignment!r}, expected a power of two")
    return alignment


def _n_bytes(name: str, kind: TensorType, shape: Sequence[int]) -> int:
    n_bytes = kind.layout.n_bytes(shape) if kind.layout else None
    if n_bytes is None:
        raise ValueError(f"tensor {name!r} of shape {shape} doesn't fit {kind.name}")
    return n_bytes


def _require_places(
    path: Path, described: Mapping[str, TensorDescription], sizes: Mapping[str, int], body_bytes: int
) -> None:
    """Check that no tensors overlap and that the file holds the data of all of them."""
    end, previous = 0, ""
    for name, (_, _, offset) in sorted(described.items(), key=lambda item: item[1].offset):
        if offset < end:
            raise SourceError(f"{path}: the data of {name} overlaps {previous}; fetch or convert the file again")
        end, previous = offset + sizes[name], name
    if end > body_bytes:
        raise SourceError(
            f"{path}: is truncated, its header promises {end} bytes of tensors, the file has {max(body_bytes, 0)}; "
            "fetch or convert the file again"
        )
