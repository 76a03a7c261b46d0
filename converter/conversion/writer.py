"""Write the tensors of a planned GGUF file: convert pieces of rows in parallel, and write each at its offset."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.system import start_writeback
from tritgguf.converter.core.tensors import SourceTensor, row_chunks
from tritgguf.converter.core.whole_files import OpenPart, write_at
from tritgguf.converter.planning.encoders import Encoder
from tritgguf.converter.planning.file_plan import FilePart, FilePlan


class _Piece(NamedTuple):
    """Rows of a tensor to convert, and the file and offset of the tensor; all slices are read from the same bytes."""

    encoder: Encoder
    source: SourceTensor | None
    slices: tuple[slice, ...]
    file: BinaryIO
    offset: int


def write_tensors(
    opened: Sequence[OpenPart], plan: FilePlan, tensors: Mapping[str, SourceTensor], threads: int, progress: Step
) -> None:
    """Convert and write all tensors, in parallel; `progress` is called with the bytes of each piece written.

    Raises SourceError if a source file changes meanwhile.
    """
    pieces = _pieces(opened, plan.parts, tensors)
    with contextlib.closing(parallel(_write, pieces, threads)) as written:
        for n_bytes in written:
            progress(n_bytes)
    for tensor in tensors.values():
        tensor.require_unchanged()


def _pieces(
    opened: Sequence[OpenPart], parts: Sequence[FilePart], tensors: Mapping[str, SourceTensor]
) -> Iterator[_Piece]:
    """Yield the pieces in the file's order; prefetch each one's source, since a thread converts it soon."""
    for part, content in zip(opened, parts, strict=True):
        for tensor, offset in zip(content.tensors, content.offsets, strict=False):
            encoder = tensor.encoder
            source = tensors[tensor.spec.source] if tensor.spec.data is None else None
            for slices in encoder.pieces(source):
                if source is not None:
                    source.prefetch(encoder.source_rows(slices[0]))
                yield _Piece(encoder, source, slices, part.file, offset)


def _write(piece: _Piece) -> int:
    """Convert and write one piece; return the number of bytes written."""
    encoder, source, n_bytes = piece.encoder, piece.source, 0
    shape = encoder.spec.shape
    row_bytes = encoder.codec.row_bytes(shape[-1])
    if source is not None:
        source.read_now(encoder.source_rows(piece.slices[0]))
    for some in piece.slices:
        for rows in row_chunks(shape, some, n_values=encoder.values_per_call(source)):
            stored = encoder.encode(source, rows)
            write_at(piece.file, stored.data, piece.offset + rows.start * row_bytes)
            n_bytes += stored.nbytes
        start, stop, _ = some.indices(math.prod(shape[:-1]))
        start_writeback(piece.file, piece.offset + start * row_bytes, (stop - start) * row_bytes)
    if source is not None:
        source.evict(encoder.source_rows(piece.slices[0]))
    return n_bytes
