"""Write a planned GGUF file: header first, then every tensor at its offset, and the name only when it is whole."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from tritgguf.converter.core import kernels
from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.system import put_on_disk
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Float32Array,
    PackedRows,
    PackedTensor,
    RowIndices,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.core.whole_files import OpenPart, write_at
from tritgguf.converter.errors import TensorError
from tritgguf.converter.gguf_io.reader import GgufTensor
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.file_plan import FilePart, FilePlan, TensorPlan
from tritgguf.converter.quant.codec import FloatCodec, Stored, TernaryCodec
from tritgguf.converter.quant.grids import code_on_grid
from tritgguf.converter.quant.method import Method

# What a thread takes at a time: long enough that Python's part takes little of the time and that it can be read ahead,
# short enough to share out evenly. Packed values take about an eighth of the bytes of bf16.
PIECE_VALUES = 1 << 22
MORE_IF_PACKED = 4

Rows = TypeVar("Rows", Float32Array, CodedRows, PackedRows)
Bytes = TypeVar("Bytes", ByteArray, ByteArray | None)


class _Piece(NamedTuple):
    """Some rows of a tensor, and where in which file the tensor goes; all its slices are made of the same bytes."""

    tensor: TensorPlan
    slices: tuple[slice, ...]
    file: BinaryIO
    offset: int

    @property
    def wanted(self) -> slice | RowIndices:
        return _wanted(self.tensor.spec, self.slices[0])


def write_tensors(
    opened: Sequence[OpenPart],
    plan: FilePlan,
    tensors: Mapping[str, SourceTensor],
    method: Method,
    threads: int,
    progress: Step,
) -> None:
    """Convert and write every tensor, in parallel; `progress` is called with the bytes written."""

    def write(piece: _Piece) -> int:
        tensor, n_bytes = piece.tensor, 0
        if tensor.spec.data is None:
            tensors[tensor.spec.source].bring_in(piece.wanted)
        row_bytes = tensor.codec.row_bytes(tensor.spec.shape[-1])
        for some in piece.slices:
            for rows in row_chunks(tensor.spec.shape, some, n_values=_values_at_once(tensor, tensors)):
                stored = _stored_rows(tensor, tensors, rows, method)
                write_at(piece.file, stored.data, piece.offset + rows.start * row_bytes)
                n_bytes += stored.nbytes
            start, stop, _ = some.indices(math.prod(tensor.spec.shape[:-1]))
            put_on_disk(piece.file, piece.offset + start * row_bytes, (stop - start) * row_bytes)
        if tensor.spec.data is None:
            tensors[tensor.spec.source].let_go(piece.wanted)
        return n_bytes

    pieces = _pieces(opened, plan.parts, tensors)
    with contextlib.closing(parallel(write, pieces, threads)) as written:
        for n_bytes in written:
            progress(n_bytes)


def _pieces(
    opened: Sequence[OpenPart], parts: Sequence[FilePart], tensors: Mapping[str, SourceTensor]
) -> Iterator[_Piece]:
    """Yield the work in the file's order; what is handed out is asked for at once, since its turn comes soon."""
    for part, content in zip(opened, parts, strict=True):
        for tensor, offset in zip(content.tensors, content.offsets, strict=False):
            for slices in _slices(tensor, tensors):
                piece = _Piece(tensor, slices, part.file, offset)
                if tensor.spec.data is None:
                    tensors[tensor.spec.source].ask_ahead(piece.wanted)
                yield piece


def _slices(tensor: TensorPlan, tensors: Mapping[str, SourceTensor]) -> Iterator[tuple[slice, ...]]:
    """Yield the rows of pieces: together those that a packing has in the same bytes, so that these are read once."""
    packed, (*_, n_columns) = _packed(tensor, tensors), tensor.spec.shape
    if packed is None or packed.packing != "four rows" or tensor.spec.rows is not None:
        n_values = PIECE_VALUES if packed is None else MORE_IF_PACKED * PIECE_VALUES
        yield from ((rows,) for rows in row_chunks(tensor.spec.shape, n_values=n_values))
        return
    n_stored = packed.shape[0] // 4
    for rows in row_chunks((n_stored, n_columns), n_values=MORE_IF_PACKED * PIECE_VALUES // 4):
        yield tuple(slice(rows.start + first, rows.stop + first) for first in range(0, 4 * n_stored, n_stored))


def _values_at_once(tensor: TensorPlan, tensors: Mapping[str, SourceTensor]) -> int | None:
    """Return how many values are converted at a time, None for the fewest: the more memory each takes, the fewer."""
    if isinstance(tensor.codec, FloatCodec) or not kernels.available():
        return None
    return MORE_IF_PACKED * PIECE_VALUES if _packed(tensor, tensors) else PIECE_VALUES


def _packed(tensor: TensorPlan, tensors: Mapping[str, SourceTensor]) -> PackedTensor | None:
    """Return a tensor's source where its codes are kept and kernels know how they are packed."""
    source = tensors.get(tensor.spec.source)
    return source if isinstance(source, PackedTensor) and tensor.grid is not None else None


def _wanted(spec: TensorSpec, rows: slice) -> slice | RowIndices:
    """Return which rows of the source those rows of the file are; a one-dimensional tensor is one row."""
    return rows if spec.rows is None or len(spec.shape) == 1 else spec.rows[rows]


def _stored_rows(tensor: TensorPlan, tensors: Mapping[str, SourceTensor], rows: slice, method: Method) -> ByteArray:
    """Return the bytes of some rows of a tensor, shape (n_rows, row bytes)."""
    spec, codec = tensor.spec, tensor.codec
    if spec.data is not None:
        assert isinstance(codec, FloatCodec)
        return codec.encode(spec.data.reshape(1, -1))
    source, wanted = tensors[spec.source], _wanted(spec, rows)
    if isinstance(codec, Stored):
        assert isinstance(source, GgufTensor)
        return np.ascontiguousarray(source.read_bytes(rows))
    if isinstance(codec, FloatCodec):
        return _as_floats(codec, source, wanted, spec)
    assert isinstance(codec, TernaryCodec)
    if packed := _packed(tensor, tensors):
        packed_rows = packed.read_packed(wanted)
        if tensor.unit_scale:
            packed_rows = replace(packed_rows, scales=np.ones_like(packed_rows.scales))
        stored = _named(codec.pack_stored, packed_rows, spec)
        if stored is not None:
            return stored
    return _named(codec.pack, _coded(tensor, source, wanted, method), spec)


def _as_floats(codec: FloatCodec, source: SourceTensor, wanted: slice | RowIndices, spec: TensorSpec) -> ByteArray:
    """Return the bytes of some rows in a type of floats."""
    permuted = spec.rows if len(spec.shape) == 1 else None
    if permuted is None:
        stored = codec.encode_stored(source.floats(wanted))
        if stored is not None:
            return stored
    values = source.read(wanted)
    return _named(codec.encode, values if permuted is None else values[:, permuted], spec)


def _named(encode: Callable[[Rows], Bytes], rows: Rows, spec: TensorSpec) -> Bytes:
    """Encode rows; raise TensorError with the tensor's name where its type can't hold one."""
    try:
        return encode(rows)
    except TensorError as error:
        raise TensorError(f"{spec.source}: {error}") from error


def _coded(tensor: TensorPlan, source: SourceTensor, rows: slice | RowIndices, method: Method) -> CodedRows:
    """Return some rows as codes and scales: the source's own where the plan says so, else a method's."""
    block = tensor.codec.block
    if isinstance(source, CodedTensor) and tensor.grid is not None:
        coded: CodedRows | None = source.read_codes(rows)
    elif tensor.grid is not None:
        coded = code_on_grid(source.floats(rows), block)
    else:
        coded = method.code(source.floats(rows), block)
    if coded is not None and not np.isfinite(coded.scales).all():
        source.read(rows)  # says so where a value isn't finite
    if coded is None:
        raise TensorError(f"{tensor.spec.source}: the file changed while it was being converted: convert again")
    if not tensor.unit_scale:
        return coded
    return CodedRows(coded.codes, np.ones_like(coded.scales), coded.group)
