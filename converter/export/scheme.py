"""What a scheme is: a rule that codes the linear layers of a checkpoint, and how the codes lie in safetensors files.

Coding and packing are separate here too: a `Coder` makes codes and scales of float rows, a `Packing` makes bytes of
those, and the sources in sources/ give the same codes and scales back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.registry import offered
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Float32Array, RowIndices, SourceTensor, row_chunks
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.quant.codec import FloatCodec, codec_named
from tritgguf.converter.quant.grids import Grid

Piece: TypeAlias = tuple[str, int, ByteArray]  # the entry, the offset in it, the bytes that stand there


@dataclass(frozen=True)
class Coder:
    """How one tensor is coded, once what depends on the whole tensor is known.

    `code` takes float32 rows; `constants` are arrays that the whole tensor shares, by the suffix of their entry's name.
    """

    code: Callable[[Float32Array], CodedRows]
    constants: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Packing(ABC):
    """How codes and scales of a tensor lie in a safetensors file, as one or more entries."""

    @abstractmethod
    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        """Return what the tensor is stored as; raise TensorError where its shape doesn't fit."""

    def chunks(self, shape: tuple[int, ...]) -> Iterator[slice]:
        """Yield slices that cover the tensor and can be packed one by one."""
        return row_chunks(shape)

    def rows(self, shape: tuple[int, ...], chunk: slice) -> slice | RowIndices:
        """Return the tensor's rows that a chunk stands for."""
        return chunk

    @abstractmethod
    def pack(self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, coder: Coder) -> list[Piece]:
        """Return the bytes of a chunk's rows, and where in which entries they stand."""


@dataclass(frozen=True)
class FloatPacking:
    """Plain floats: what every tensor is stored as that isn't coded, and every tensor of a dequantized folder."""

    dtype: str

    @property
    def codec(self) -> FloatCodec:
        codec = codec_named(FLOAT_DTYPES[self.dtype].codec)
        assert isinstance(codec, FloatCodec)
        return codec

    def pack(self, name: str, chunk: slice, values: Float32Array) -> tuple[Piece, Float32Array]:
        """Return the bytes of some rows, and the values that they stand for."""
        try:
            stored = self.codec.encode(values)
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from error
        return (name, chunk.start * stored.shape[1], stored), self.codec.decode(stored)


@dataclass(frozen=True)
class Scheme:
    """One scheme of `tritgguf quantize`.

    `group` neighbouring columns share a scale, None means the whole tensor. `coder` looks at a tensor as often as it
    must; `holds` tells whether a ternary grid found in the tensor is kept as it is. `config` is what a packed folder's
    config.json says in quantization_config, `reading` who can read such a folder, `bits` the information per weight.
    `dequantized` says which of the two forms is the usual one, `plain_dtype` what the other tensors become (None: what
    they are), `packs_embeddings` whether embeddings and output layer can be coded too.
    """

    name: str
    group: int | None
    coder: Callable[[SourceTensor, Grid | None, int], Coder]
    holds: Callable[[Grid, SourceTensor], bool]
    packing: Packing
    config: Mapping[str, Any]
    reading: str
    bits: float | None = None
    dequantized: bool = False
    plain_dtype: str | None = None
    packs_embeddings: bool = False


def schemes() -> dict[str, Scheme]:
    """Return every scheme by its name."""
    return {scheme.name: scheme for scheme in offered("tritgguf.converter.export.schemes", "SCHEME", Scheme)}


def scheme_named(name: str) -> Scheme:
    """Return the scheme of that name; raise UnsupportedError listing the names there are."""
    known = schemes()
    if name not in known:
        raise UnsupportedError(f"unknown scheme {name!r}; expected one of {', '.join(known)}")
    return known[name]
