"""Base log-probabilities in the file format of llama.cpp's llama-perplexity, which writes and reads them.

Little-endian: "_logits_"; n_ctx, n_vocab and n_chunks, int32 each; the token ids of all chunks, int32; then, for each
scored position of each chunk, a row: the step and the lowest log-probability as float32, and for each token of the
vocabulary a uint16 code, with one more where their number is odd. A token's log-probability is step * code + lowest.
The lowest is at most 16 below the highest; less probable tokens get it too.

Source: perplexity.cpp in llama.cpp's tools/perplexity (functions log_softmax, process_logits and kl_divergence).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.core.whole_files import OpenPart, require_writable, whole_files, write_at
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.measure.chunks import Chunks, n_scored

Floats = NDArray[np.float32]
Codes = NDArray[np.uint16]

MAGIC = b"_logits_"
RANGE = 16.0  # nats that the codes of a row span at most
MAX_CODE = 65535
_HEADER = struct.Struct("<8s3i")
_LEAST_STEP = 1e-30  # of rows whose logits differ at all
_ROW_HEADER = 4  # codes that a row's two floats take


def row_codes(n_vocab: int) -> int:
    """Return how many uint16 a row has, its two floats included."""
    return n_vocab + n_vocab % 2 + _ROW_HEADER


def encode(logits: Floats) -> Codes:
    """Return the rows of a file for logits, (n_rows, n_vocab)."""
    n_rows, n_vocab = logits.shape
    highest, shifted_sum = logits.max(axis=1, keepdims=True), np.empty((n_rows, 1))
    np.exp(logits - highest).sum(axis=1, dtype=np.float64, keepdims=True, out=shifted_sum)
    lowest = np.maximum(logits.min(axis=1, keepdims=True), highest - np.float32(RANGE))
    step = (highest - lowest) / np.float32(MAX_CODE)
    rows = np.zeros((n_rows, row_codes(n_vocab)), np.uint16)
    floats = np.concatenate([step, lowest - highest - np.log(shifted_sum).astype(np.float32)], axis=1)
    rows[:, :_ROW_HEADER] = floats.astype("<f4").view("<u2")
    per_step = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > _LEAST_STEP)
    codes = np.rint((np.maximum(logits, lowest) - lowest) * per_step)
    rows[:, _ROW_HEADER : _ROW_HEADER + n_vocab] = codes
    return rows


def decode(rows: Codes, n_vocab: int) -> Floats:
    """Return the log-probabilities, (n_rows, n_vocab), of a file's rows."""
    floats = np.ascontiguousarray(rows[:, :_ROW_HEADER]).view("<f4")
    step, lowest = floats[:, :1], floats[:, 1:]
    result: Floats = rows[:, _ROW_HEADER : _ROW_HEADER + n_vocab].astype(np.float32)
    result *= step
    result += lowest
    return result


@dataclass(frozen=True)
class BaseFile:
    """A file of base log-probabilities: the chunks' token ids, and the rows of each chunk, read when asked for."""

    path: Path
    n_vocab: int
    chunks: Chunks

    def rows(self, chunk: int) -> Codes:
        """Return the rows of one chunk's scored positions."""
        n_rows, width = n_scored(self.chunks.n_ctx), row_codes(self.n_vocab)
        start = _HEADER.size + self.chunks.ids.nbytes + 2 * chunk * n_rows * width
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(2 * n_rows * width)
        if len(data) != 2 * n_rows * width:
            raise EngineError(f"{self.path}: changed while it was read; run the command again")
        return np.frombuffer(data, "<u2").reshape(n_rows, width)


def read_base(path: Path) -> BaseFile:
    """Open a file of base log-probabilities; EngineError where it isn't one or is damaged."""
    remedy = "write it again with --against BASE.gguf"
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size or start[: len(MAGIC)] != MAGIC:
                raise EngineError(
                    f"{path}: isn't a file of base log-probabilities, which begins with _logits_; {remedy}"
                )
            _, n_ctx, n_vocab, n_chunks = _HEADER.unpack(start)
            expected = _file_bytes(n_ctx, n_vocab, n_chunks) if min(n_ctx, n_vocab, n_chunks) > 0 else 0
            found = path.stat().st_size
            if n_ctx < 4 or expected != found:
                raise EngineError(
                    f"{path}: is damaged: {n_chunks} chunks of {n_ctx} tokens with {n_vocab} log-probabilities each "
                    f"take {expected} bytes, the file has {found}; {remedy}"
                )
            ids = np.frombuffer(file.read(4 * n_chunks * n_ctx), "<i4").reshape(n_chunks, n_ctx)
    except OSError as error:
        raise EngineError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
    if ids.min() < 0 or ids.max() >= n_vocab:
        raise EngineError(f"{path}: is damaged: it has token ids that aren't in 0..{n_vocab - 1}; {remedy}")
    return BaseFile(path, n_vocab, Chunks(ids))


def _file_bytes(n_ctx: int, n_vocab: int, n_chunks: int) -> int:
    return _HEADER.size + n_chunks * (4 * n_ctx + 2 * n_scored(n_ctx) * row_codes(n_vocab))


class _Content(NamedTuple):
    header: bytes
    file_bytes: int


class BaseWriter:
    """Writes the rows of chunk after chunk."""

    def __init__(self, part: OpenPart, offset: int) -> None:
        self._part = part
        self._offset = offset

    def write(self, rows: Codes) -> None:
        data = rows.astype("<u2", copy=False)
        write_at(self._part.file, data.data, self._offset)
        self._offset += data.nbytes


@contextlib.contextmanager
def write_base(path: Path, chunks: Chunks, n_vocab: int, *, force: bool) -> Iterator[BaseWriter]:
    """Write a file of base log-probabilities; it gets its name at the end of the block, when all rows are in it.

    OutputError if it can't be written, there is too little space, or, unless `force`, it exists.
    """
    require_writable(path, [path], force)
    n_chunks, n_ctx = chunks.ids.shape
    header = _HEADER.pack(MAGIC, n_ctx, n_vocab, n_chunks) + chunks.ids.astype("<i4").tobytes()
    content = _Content(header, _file_bytes(n_ctx, n_vocab, n_chunks))
    with whole_files([path], [content], force=force) as (part,):
        yield BaseWriter(part, len(header))
