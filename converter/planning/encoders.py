"""Encoders turn rows of a tensor into bytes: the plan chooses one per tensor, the writer and `verify` call it.

An encoder reads rows of the source in the order that the graph needs, and returns them as the file stores them. It
handles whatever is special about its kind of tensor: a row order, packed codes that a kernel converts directly, a scale
that is stored in another tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from tritgguf.converter.core import kernels
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    Float32Array,
    Floats,
    PackedRows,
    RowIndices,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.errors import TensorError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.quant.codec import AnyCodec, Codec, FloatCodec, TernaryCodec
from tritgguf.converter.quant.four_levels import code_on_four_levels
from tritgguf.converter.quant.grids import Grid, code_on_grid
from tritgguf.converter.quant.method import Method

# Values per thread and piece: enough that Python's overhead is small and that the system can prefetch, few enough that
# all threads get equal work. Packed values have about an eighth of the bytes of bf16.
PIECE_VALUES = 1 << 22
MORE_IF_PACKED = 4

Rows = TypeVar("Rows", Float32Array, CodedRows, PackedRows)
Bytes = TypeVar("Bytes", ByteArray, ByteArray | None)


@dataclass(frozen=True)
class Encoder(ABC):
    """Encode the tensor that `spec` describes as the type of `codec`."""

    spec: TensorSpec
    codec: Codec

    @abstractmethod
    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        """Return rows of the file's tensor as bytes, uint8 (n_rows, row bytes).

        `source` is the checkpoint's tensor, None only for constants. Raises TensorError if a row can't be stored.
        """

    @property
    def grid(self) -> Grid | None:
        """The grid whose codes are stored, None for other encoders."""
        return None

    @property
    def rounds(self) -> bool:
        """Whether a method quantizes the values to codes."""
        return False

    @property
    def weighted(self) -> bool:
        """Whether the errors of columns are weighted by an importance matrix."""
        return False

    @property
    def keeps_bytes(self) -> bool:
        """Whether a GGUF tensor's bytes stay as they are."""
        return False

    def with_unit_scale(self) -> Encoder:
        """Return the same encoder for a tensor whose one scale is in a `.scale` tensor."""
        raise ValueError(f"{self.spec.name} isn't stored as codes with one scale")

    def source_rows(self, rows: slice) -> slice | RowIndices:
        """Return the rows of the source that `rows` of the file come from; a one-dimensional tensor is one row."""
        order = self.spec.rows
        return rows if order is None or len(self.spec.shape) == 1 else order[rows]

    def pieces(self, source: SourceTensor | None) -> Iterator[tuple[slice, ...]]:
        """Yield the rows that one thread converts at a time, as slices that are read from the same source bytes."""
        yield from ((rows,) for rows in row_chunks(self.spec.shape, n_values=PIECE_VALUES))

    def values_per_call(self, source: SourceTensor | None) -> int | None:
        """Return the number of values to encode in one call; None for the default of `row_chunks`."""
        return PIECE_VALUES if kernels.available() else None

    def _named(self, encode: Callable[[Rows], Bytes], rows: Rows) -> Bytes:
        """Encode rows; prefix the message of a TensorError with the tensor's name."""
        try:
            return encode(rows)
        except TensorError as error:
            raise TensorError(f"{self.spec.source}: {error}") from error


@dataclass(frozen=True)
class Constant(Encoder):
    """Values derived from config.json or from other tensors, without a source tensor."""

    codec: FloatCodec

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        return self.codec.encode(values(self.spec, None, rows))


@dataclass(frozen=True)
class Passthrough(Encoder):
    """The bytes of a tensor in a GGUF file, unchanged."""

    @property
    def keeps_bytes(self) -> bool:
        return True

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        return np.ascontiguousarray(_present(source).read_bytes(rows))


@dataclass(frozen=True)
class ChosenBlocks(Encoder):
    """The type's blocks, unchanged, as they were chosen for weights that had none."""

    @property
    def rounds(self) -> bool:
        return True

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        return np.ascontiguousarray(_present(source).read_bytes(self.source_rows(rows)))


@dataclass(frozen=True)
class AsFloats(Encoder):
    """Values in a float type, rounded if it can't store them exactly."""

    codec: FloatCodec

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        if self.spec.rows is None or len(self.spec.shape) > 1:
            stored = self.codec.encode_stored(_present(source).floats(self.source_rows(rows)))
            if stored is not None:
                return stored
        return self._named(self.codec.encode, values(self.spec, source, rows))

    def values_per_call(self, source: SourceTensor | None) -> int | None:
        return None  # float codecs need several times as much memory as the values


@dataclass(frozen=True)
class OnGrid(Encoder):
    """The tensor's own codes and scales, ternary or on four levels.

    With `unit_scale` all scales are 1, and a separate `.scale` tensor stores the scale of the whole tensor. With
    `chosen` the codes were chosen for weights that had none.
    """

    codec: TernaryCodec
    on_grid: Grid
    unit_scale: bool = False
    chosen: bool = False

    @property
    def rounds(self) -> bool:
        return self.chosen

    @property
    def grid(self) -> Grid:
        return self.on_grid

    def with_unit_scale(self) -> OnGrid:
        return replace(self, unit_scale=True)

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        source, wanted = _present(source), self.source_rows(rows)
        packed = source.read_packed(wanted)
        if packed is not None:
            if self.unit_scale:
                packed = replace(packed, scales=np.ones_like(packed.scales))
            stored = self._named(self.codec.pack_stored, packed)
            if stored is not None:
                return stored
        code = code_on_grid if self.on_grid.levels == 3 else code_on_four_levels
        coded = source.read_codes(wanted) or code(source.floats(wanted), self.codec.block)
        return self._named(self.codec.pack, self._checked(coded, source, wanted))

    def _checked(self, coded: CodedRows | None, source: SourceTensor, rows: slice | RowIndices) -> CodedRows:
        coded = finite(coded, source, rows)
        if coded is None:
            raise TensorError(f"{self.spec.source}: the file changed during the conversion; convert it again")
        return CodedRows(coded.codes, np.ones_like(coded.scales), coded.group) if self.unit_scale else coded

    def pieces(self, source: SourceTensor | None) -> Iterator[tuple[slice, ...]]:
        packing, (n_rows, n_columns) = _present(source).kernel_packing, self.spec.shape[-2:]
        if packing is None:
            yield from super().pieces(source)
            return
        in_order = packing != "four rows" or self.spec.rows is not None
        # Kernels read rows of one matrix. Where a byte holds one value from each quarter of its rows, all four are
        # converted together, to read each byte once.
        n_stored = n_rows if in_order else n_rows // 4
        n_values = MORE_IF_PACKED * PIECE_VALUES * n_stored // n_rows
        for start in range(0, math.prod(self.spec.shape[:-1]), n_rows):
            firsts = range(start, start + n_rows, n_stored)
            for rows in row_chunks((n_stored, n_columns), n_values=n_values):
                yield tuple(slice(rows.start + first, rows.stop + first) for first in firsts)

    def values_per_call(self, source: SourceTensor | None) -> int | None:
        if not kernels.available():
            return None
        return MORE_IF_PACKED * PIECE_VALUES if _present(source).kernel_packing else PIECE_VALUES


@dataclass(frozen=True)
class Rounded(Encoder):
    """Codes and scales from a method that quantizes the values.

    `importance` weighs the errors of the columns, float32 (n_matrices, n_columns); None weighs all alike.
    """

    codec: TernaryCodec
    method: Method
    importance: Float32Array | None = field(default=None, compare=False, repr=False)

    @property
    def rounds(self) -> bool:
        return True

    @property
    def weighted(self) -> bool:
        return self.importance is not None

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        source, wanted = _present(source), self.source_rows(rows)
        coded = finite(self._quantized(source.floats(wanted), rows), source, wanted)
        return self._named(self.codec.pack, coded)

    def _quantized(self, floats: Floats, rows: slice) -> CodedRows:
        if self.importance is None or self.method.weighted is None:
            return self.method.quantize(floats, self.codec.block)
        start, stop, _ = rows.indices(math.prod(self.spec.shape[:-1]))
        n_rows = self.spec.shape[-2]
        parts = []
        for matrix in range(start // n_rows, -(-stop // n_rows)):  # an expert's columns have their own importance
            own = slice(max(matrix * n_rows - start, 0), (matrix + 1) * n_rows - start)
            some = Floats(floats.words[own], floats.dtype)
            parts.append(self.method.weighted(some, self.codec.block, self.importance[matrix]))
        codes, scales = ([getattr(part, name) for part in parts] for name in ("codes", "scales"))
        return CodedRows(np.concatenate(codes), np.concatenate(scales), self.codec.block)


def encoder_for(spec: TensorSpec, codec: AnyCodec, method: Method, grid: Grid | None = None) -> Encoder:
    """Return the encoder that stores a tensor in the type of `codec`.

    A ternary type stores the tensor's own codes if `grid` is given, which must fit the type's blocks; else `method`
    quantizes.
    """
    if spec.data is not None and codec.ternary is False:
        return Constant(spec, codec)
    if codec.ternary is False:
        return AsFloats(spec, codec)
    return Rounded(spec, codec, method) if grid is None else OnGrid(spec, codec, grid)


def values(spec: TensorSpec, source: SourceTensor | None, rows: slice) -> Float32Array:
    """Return the effective weights of rows of the file's tensor, float32 (n_rows, n_columns)."""
    if spec.data is not None:
        return spec.data.reshape(1, -1)
    if spec.rows is None:
        return _present(source).read(rows)
    if len(spec.shape) == 1:
        return _present(source).read(rows)[:, spec.rows]
    order: RowIndices = spec.rows[rows]
    return _present(source).read(order)


CodesOrNone = TypeVar("CodesOrNone", CodedRows, CodedRows | None)


def finite(coded: CodesOrNone, source: SourceTensor, rows: slice | RowIndices) -> CodesOrNone:
    """Return the coded rows unchanged; raise TensorError, naming the value, if the source has a NaN or Inf."""
    if coded is not None and not np.isfinite(coded.scales).all():
        source.read(rows)
    return coded


def _present(source: SourceTensor | None) -> SourceTensor:
    if source is None:
        raise ValueError("only a constant can be encoded without a source")
    return source
