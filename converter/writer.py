"""Write a planned GGUF file: header first, then every tensor at its offset, and the name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFWriter, Keys

from tritgguf.converter.codec import FloatCodec, Stored, TernaryCodec
from tritgguf.converter.errors import OutputError, TensorError
from tritgguf.converter.gguf_tensors import GgufTensor
from tritgguf.converter.grids import code_on_grid
from tritgguf.converter.metadata import Metadata
from tritgguf.converter.method import Method
from tritgguf.converter.parallel import parallel
from tritgguf.converter.plan import FilePlan, TensorPlan
from tritgguf.converter.progress import Step
from tritgguf.converter.survey import encode
from tritgguf.converter.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    RowIndices,
    SourceTensor,
    row_chunks,
)


def header_bytes(metadata: Metadata, tensors: Sequence[TensorPlan]) -> bytes:
    """Return the file's bytes up to the padding before the first tensor."""
    keys = dict(metadata)
    architecture = keys.pop(Keys.General.ARCHITECTURE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = GGUFWriter(path, str(architecture.data))
        for key, value in keys.items():
            writer.add_key_value(key, value.data, value.type, value.element)
        for tensor in tensors:
            spec = tensor.spec
            writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), tensor.n_bytes, tensor.codec.ggml_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()


def require_writable(out: Path, force: bool) -> None:
    """Raise OutputError where the target can't become a file; nothing is created."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder; expected the name of the file to write, such as {out / 'model.gguf'}")
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; add --force to replace it")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is no folder; create it, or choose another target")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out.parent} isn't writable; choose another target")


@contextlib.contextmanager
def whole_file(out: Path, file_bytes: int) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a temporary file beside `out` of the final size; rename it when the block ends well, else remove it."""
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        free = shutil.disk_usage(out.parent).free
        if free < file_bytes:
            raise OutputError(
                f"{out.parent} has {free / 1e9:.2f} GB free, but {out.name} needs {file_bytes / 1e9:.2f} GB"
            )
        with partial.open("xb+") as file:
            file.truncate(file_bytes)
            yield partial, file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"{out} can't be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_tensors(
    file: BinaryIO,
    plan: FilePlan,
    tensors: Mapping[str, SourceTensor],
    method: Method,
    threads: int,
    progress: Step,
) -> None:
    """Convert and write every tensor by chunks of rows, in parallel; `progress` is called with the bytes written."""
    lock = threading.Lock()

    def write_chunk(chunk: tuple[TensorPlan, int, slice]) -> int:
        tensor, offset, rows = chunk
        stored = _stored_rows(tensor, tensors, rows, method)
        with lock:
            file.seek(offset + rows.start * stored.shape[1])
            file.write(stored.data)
        return stored.nbytes

    chunks = [
        (tensor, offset, rows)
        for tensor, offset in zip(plan.tensors, plan.offsets, strict=False)
        for rows in row_chunks(tensor.spec.shape)
    ]
    for n_bytes in parallel(write_chunk, chunks, threads):
        progress(n_bytes)


def _stored_rows(tensor: TensorPlan, tensors: Mapping[str, SourceTensor], rows: slice, method: Method) -> ByteArray:
    """Return the bytes of some rows of a tensor, shape (n_rows, row bytes)."""
    spec, codec = tensor.spec, tensor.codec
    if spec.data is not None:
        assert isinstance(codec, FloatCodec)
        return codec.encode(spec.data.reshape(1, -1))
    source = tensors[spec.source]
    if isinstance(codec, Stored):
        assert isinstance(source, GgufTensor)
        return np.ascontiguousarray(source.read_bytes(rows))
    if len(spec.shape) == 1:
        values = source.read(slice(0, 1))
        assert isinstance(codec, FloatCodec)
        return encode(codec, values if spec.rows is None else values[:, spec.rows], spec.source)
    wanted = rows if spec.rows is None else spec.rows[rows]
    if isinstance(codec, FloatCodec):
        return encode(codec, source.read(wanted), spec.source)
    assert isinstance(codec, TernaryCodec)
    try:
        return codec.pack(_coded(tensor, source, wanted, method))
    except TensorError as error:
        raise TensorError(f"{spec.source}: {error}") from error


def _coded(tensor: TensorPlan, source: SourceTensor, rows: slice | RowIndices, method: Method) -> CodedRows:
    """Return some rows as codes and scales: the source's own where the plan says so, else a method's."""
    block = tensor.codec.block
    if tensor.grid is None:
        return method.code(source.read(rows), block)
    coded = source.read_codes(rows) if isinstance(source, CodedTensor) else code_on_grid(source.read(rows), block)
    if coded is None:
        raise TensorError("the file changed while it was being converted: convert again")
    if not tensor.unit_scale:
        return coded
    return CodedRows(coded.codes, np.ones_like(coded.scales), coded.group)
