"""Read PyTorch's checkpoint files, pytorch_model.bin or its shards, without PyTorch: each tensor is mapped.

Such a file is a zip archive (PyTorch 1.6 and newer): NAME/data.pkl is a pickle that describes the tensors, and
NAME/data/KEY the bytes of a storage, which several tensors may share. Nothing in the pickle is run, see
tensor_pickle.py. Sizes, offsets and strides are checked before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritgguf.converter.checkpoint.pickle_globals import PickledTensor
from tritgguf.converter.checkpoint.shards import read_shards
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.checkpoint.stored_zip import LOCAL, read_members
from tritgguf.converter.checkpoint.tensor_pickle import read_pickle
from tritgguf.converter.core.dtypes import FLOAT_DTYPES, ITEM_BYTES
from tritgguf.converter.core.settings import shown, shown_key
from tritgguf.converter.core.tensors import ByteArray, RowIndices, Words
from tritgguf.converter.errors import SourceError

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
PICKLE, STORAGES, BYTE_ORDER, SCRIPT = "data.pkl", "data/", "byteorder", "constants.pkl"
LITTLE_ENDIAN = b"little"
NESTED = ("state_dict", "model", "module")  # where training programs put the state dict
SAVE_AGAIN = "save the model again: save_pretrained writes safetensors"


@dataclass(frozen=True)
class StridedTensor(StoredTensor):
    """A vector or matrix of floats that aren't side by side, such as a transposed one; `data` is all that it spans.

    `strides` count values. No two of its values share a place.
    """

    strides: tuple[int, ...]

    @property
    def words(self) -> Words:
        stored = self.data.view(FLOAT_DTYPES[self.dtype].words)
        strides = [stored.itemsize * stride for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(stored, self.shape, strides, writeable=False)
        return view.reshape(-1, self.shape[-1])

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return [self.data]


def matches(folder: Path) -> bool:
    """Return whether the folder holds PyTorch files under the names that transformers looks for."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder by name; no weight is read. Raise SourceError if a file is damaged."""
    if (folder / SINGLE).exists():
        return read_file(folder / SINGLE)
    return read_shards(folder / INDEX, read_file)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name; no weight is read. Raise SourceError that names what is damaged."""
    try:
        with path.open("rb") as file:
            _require_zip(path, file.read(len(LOCAL)))
        members = read_members(path)
    except OSError as error:
        raise SourceError(f"{path.name} can't be read: {error.strerror or error}") from error
    root = next(iter(members), "").partition("/")[0] + "/"
    if root + SCRIPT in members:
        raise SourceError(
            f"{path.name} is a TorchScript program, not a state dict; expected what save_pretrained or torch.save "
            f"write: {SAVE_AGAIN}"
        )
    if root + PICKLE not in members:
        raise SourceError(f"{path.name} holds no {root + PICKLE}: it isn't a file of torch.save; fetch it again")
    _require_little_endian(path, members.get(root + BYTE_ORDER))
    state = _state_dict(path, read_pickle(path.name, members[root + PICKLE].tobytes()))
    place = root + STORAGES
    storages = {name.removeprefix(place): data for name, data in members.items() if name.startswith(place)}
    return {name: _stored(path, name, tensor, storages) for name, tensor in state.items()}


def _require_zip(path: Path, begin: bytes) -> None:
    if begin == LOCAL:
        return
    if begin[:1] == b"\x80":
        raise SourceError(
            f"{path.name} is in the format of PyTorch before 1.6, a bare pickle; expected a zip archive: load it in a "
            f"newer PyTorch with torch.load(file, weights_only=True) and save it with torch.save, or {SAVE_AGAIN}"
        )
    raise SourceError(f"{path.name} isn't a zip archive, as torch.save writes it: fetch it again")


def _require_little_endian(path: Path, order: ByteArray | None) -> None:
    """Raise SourceError for numbers of another byte order; PyTorch before 2.1 doesn't say which it is."""
    if order is not None and order.tobytes() != LITTLE_ENDIAN:
        raise SourceError(
            f"{path.name} says that its byte order is {shown(order[:16].tobytes())}; expected {LITTLE_ENDIAN!r}: "
            "load it with torch on this machine and save it again"
        )


def _state_dict(path: Path, found: object) -> Mapping[str, PickledTensor]:
    """Return the names and tensors; raise SourceError where there is anything else."""
    if not isinstance(found, dict):
        raise SourceError(f"{path.name} holds no dict ({_kind(found)}); expected a state dict, names with tensors")
    if not _tensors(found):
        nested = [key for key in NESTED if isinstance(found.get(key), dict) and _tensors(found[key])]
        if len(nested) == 1:
            return _state_dict(path, found[nested[0]])
        if nested:
            raise SourceError(f"{path.name} holds several state dicts, {' and '.join(nested)}: save one of them alone")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise SourceError(
                f"{path.name} holds {shown_key(str(name))} ({_kind(value)}); expected names with tensors alone: "
                "save the model's state dict, without anything beside it"
            )
    return found


def _tensors(found: Mapping[Any, object]) -> bool:
    return any(isinstance(value, PickledTensor) for value in found.values())


def _kind(value: object) -> str:
    return "tensor" if isinstance(value, PickledTensor) else type(value).__name__.lstrip("_")


def _stored(path: Path, name: str, tensor: PickledTensor, storages: Mapping[str, ByteArray]) -> StoredTensor:
    """Return a tensor as a view of its storage, after checking that it lies in it."""
    storage, item_bytes = tensor.storage, ITEM_BYTES[tensor.dtype]
    data = storages.get(storage.key)
    n_bytes = storage.n_items * (ITEM_BYTES[storage.dtype] if storage.dtype else 1)
    if data is None or len(data) != n_bytes:
        found = "the file doesn't have" if data is None else f"has {len(data)} bytes"
        raise SourceError(
            f"{path.name}: tensor {shown_key(name)} needs the storage {shown(storage.key)} of {n_bytes} bytes, which "
            f"{found}: fetch the file again"
        )
    n_values = math.prod(tensor.shape)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if n_values and (last + 1) * item_bytes > len(data):
        raise SourceError(
            f"{path.name}: tensor {shown_key(name)} of shape {shown(tensor.shape)} reaches {last + 1} values into a "
            f"storage of {len(data) // item_bytes}: fetch the file again"
        )
    span = data[tensor.offset * item_bytes : (last + 1) * item_bytes] if n_values else data[:0]
    if not n_values or _contiguous(tensor):
        return StoredTensor(name, tensor.dtype, tensor.shape, path, span)
    if tensor.dtype not in FLOAT_DTYPES or len(tensor.shape) > 2 or not _distinct(tensor):
        raise SourceError(
            f"{path.name}: tensor {shown_key(name)} of {tensor.dtype} has the strides {shown(tensor.strides)} for the "
            f"shape {shown(tensor.shape)}; expected values that lie side by side: call .contiguous() before saving"
        )
    strides = tuple(stride if size > 1 else 0 for stride, size in zip(tensor.strides, tensor.shape, strict=True))
    return StridedTensor(name, tensor.dtype, tensor.shape, path, span, strides)


def _contiguous(tensor: PickledTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _distinct(tensor: PickledTensor) -> bool:
    """Whether no two values share a place, so that the tensor is no larger than what it spans."""
    reach = 0
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return False
        reach += (size - 1) * stride
    return True
