"""What gptq or tuning has made so far, in a folder beside the file that it is for.

It holds a file of packed codes for each block, and for tuning one of the steps that are done.

The folder is bound to what the codes depend on; made for anything else, it starts anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritgguf.converter.calibration.layers import Layer
from tritgguf.converter.checkpoint.safetensors_layout import Entry, Shard
from tritgguf.converter.checkpoint.safetensors_reader import read_file
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.new_file import locked
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Float32Array,
    RowIndices,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.core.whole_files import whole_files, write_at, write_whole
from tritgguf.converter.errors import OutputError, SourceError
from tritgguf.converter.quant.codec import TernaryCodec
from tritgguf.converter.quant.codecs.q2_k import Q2K

STATE = "state.json"
STEPS = "steps.pt"  # how far tuning is


@dataclass(frozen=True)
class CalibratedTensor(CodedTensor):
    """A linear layer's codes and scales as gptq chose them, packed as `codec` has them in `stored`.

    `original` is the checkpoint's tensor; `how` tells how the codes were chosen.
    """

    stored: StoredTensor
    codec: TernaryCodec
    highest: int
    original: SourceTensor
    how: str

    @property
    def levels(self) -> int:
        return self.highest + 2

    @property
    def chosen(self) -> str:
        return self.how

    def scales(self, rows: slice) -> Float32Array:
        return self.read_codes(rows).scales

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        return self.codec.unpack(np.ascontiguousarray(self.stored.data.reshape(self.shape[0], -1)[rows]))

    def require_unchanged(self) -> None:
        self.original.require_unchanged()


@dataclass(frozen=True)
class CalibratedBlocks(SourceTensor):
    """A linear layer as gptq chose it in a type that has more than codes with scales, packed as `codec` has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: StoredTensor
    codec: TernaryCodec
    original: SourceTensor
    how: str

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    @property
    def chosen(self) -> str:
        return self.how

    def read_bytes(self, rows: slice | RowIndices) -> ByteArray:
        return self.stored.data.reshape(self.shape[0], -1)[rows]

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.codec.decode(np.ascontiguousarray(self.read_bytes(rows)))

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(rows)

    def require_unchanged(self) -> None:
        self.original.require_unchanged()


def calibrated_tensor(layer: Layer, stored: StoredTensor, original: SourceTensor, how: str) -> SourceTensor:
    """Return a fitted layer as a tensor in the place of the checkpoint's."""
    name, shape, codec = original.name, layer.spec.shape, layer.codec
    if isinstance(codec, Q2K):
        return CalibratedBlocks(name, codec.name, shape, stored, codec, original, how)
    return CalibratedTensor(name, codec.name, shape, codec.block, stored, codec, layer.highest, original, how)


@dataclass(frozen=True)
class Kept:
    """The folder, and what to tell the user about what was in it."""

    folder: Path
    note: str

    def read(self, number: int) -> dict[str, StoredTensor] | None:
        """Return a block's tensors of packed rows by name, None if it isn't finished."""
        path = self._path(number)
        with contextlib.suppress(SourceError):  # damaged: then it is made again
            return read_file(path) if path.is_file() else None
        return None

    def write(self, number: int, packed: Mapping[str, ByteArray]) -> dict[str, StoredTensor]:
        """Keep a block's packed rows, uint8 (n_rows, row bytes), and return them as `read` does."""
        path = self._path(number)
        shard = Shard(path.name, tuple(Entry(name, "U8", rows.shape) for name, rows in packed.items()))
        with whole_files([path], [shard], force=True) as (part,):
            for name, rows in packed.items():
                write_at(part.file, np.ascontiguousarray(rows).data, shard.offsets[name])
        return read_file(path)

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:04d}.safetensors"


def folder_for(out: Path, kind: str = "gptq") -> Path:
    """Return the folder's path."""
    return out.with_name(f"{out.name}.part-{kind}")


def digest(tensors: Mapping[str, SourceTensor]) -> str:
    """Return the sha256 of tensors' names, types and values, with adapters merged."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for rows in row_chunks(tensor.shape):
            total.update(tensor.floats(rows).words.data)
            tensor.evict(rows)
    return total.hexdigest()


@contextlib.contextmanager
def kept_beside(out: Path, identity: Mapping[str, Any], kind: str = "gptq", what: str = "blocks") -> Iterator[Kept]:
    """Yield what an earlier run kept with an equal identity, else an empty folder; remove it after success.

    `what` names in messages what it holds.

    Raises OutputError where it can't be written, or another run holds it.
    """
    folder = folder_for(out, kind)
    with contextlib.ExitStack() as lock:
        try:
            folder.mkdir(exist_ok=True)
            _lock(folder, lock)
            kept = Kept(folder, _prepared(folder, json.dumps(identity, sort_keys=True).encode(), what))
        except OSError as error:
            raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error
        yield kept
        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, lock: contextlib.ExitStack) -> None:
    try:
        lock.enter_context(locked(folder))
    except BlockingIOError as error:
        raise OutputError(f"another run is writing {folder}; wait for it") from error
    except OSError:  # a file system without locks
        pass


def _prepared(folder: Path, identity: bytes, what: str) -> str:
    """Empty the folder unless it is bound to this identity; return what to tell the user."""
    state = folder / STATE
    found = state.read_bytes() if state.is_file() else None
    if found == identity:
        return f"goes on with the {what} in {folder}"
    _empty(folder)
    write_whole(state, identity, force=True)
    if found is None:
        return ""
    return f"starts anew: other weights, options, text or version than the {what} in {folder}"


def _empty(folder: Path) -> None:
    """Remove what an earlier run kept; raise OutputError where the folder holds anything else."""
    ours = [
        path
        for path in folder.iterdir()
        if path.name in (STATE, STEPS) or path.match("block-*") or path.suffix == ".part"
    ]
    others = sorted({*folder.iterdir()} - set(ours))
    if others:
        raise OutputError(f"{folder} holds {others[0].name}, which tritgguf didn't write: move it elsewhere")
    for path in ours:
        path.unlink()
