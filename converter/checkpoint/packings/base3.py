"""Base-3 packing: four neighbouring columns' trits as the digits of one byte, and a scale per group of columns.

`X.weight` is U8 (rows, columns / 4): byte = v0 + 3·v1 + 9·v2 + 27·v3 with v = trit + 1. `X.weight.scales` is F32
(rows, columns / group): weight = trit · scale. The columns may be padded to a multiple of the group. The 14B seed packs
its embeddings and output layer the same way and has no quantization_config; a newer variant has one (quant_method
bitnet_158, packing base3_columns).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.packer import Constants, Packer, Piece
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.settings import shown
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    Float32Array,
    PackedRows,
    PackedTensor,
    RowIndices,
    SourceTensor,
    row_chunks,
    row_numbers,
)
from tritgguf.converter.errors import SourceError, TensorError

SCALES = ".scales"
INFINITE = 0x7F800000  # as a float32's bits; those of NaN and of negative numbers are larger
METHOD, LAYOUT = "bitnet_158", "base3_columns"
POWERS = np.array([1, 3, 9, 27], np.uint8)
# The four trits of every byte as one word; bytes above 80 are invalid.
FOURS = ((np.arange(256)[:, None] // POWERS % 3).astype(np.int8) - np.int8(1)).view(np.uint32)[:, 0]


@dataclass(frozen=True)
class Base3Tensor(PackedTensor):
    """One packed tensor; on disk, with padding, `stored_group` columns share a scale."""

    stored: StoredTensor
    stored_scales: StoredTensor
    stored_group: int
    packing = "base-3"

    def fitted(self, shape: tuple[int, ...]) -> SourceTensor | None:
        """Return the tensor without its padding; None if padding `shape` doesn't give this tensor's shape."""
        if len(shape) != 2:
            return None
        rows, columns = shape
        if rows != self.shape[0] or not 0 <= self.shape[1] - columns < self.stored_group:
            return None
        return replace(self, shape=shape, group=math.gcd(self.stored_group, columns))

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return [*self.stored.on_disk(rows), *self.stored_scales.on_disk(rows)]

    def scales(self, rows: slice | RowIndices) -> Float32Array:
        words, dtype = self.stored_scales.floats(rows)
        if dtype == "F32" and words.max(initial=0) < INFINITE:
            return self._per_group(words.view(np.float32))
        found = self.stored_scales.read(rows)
        if found.min(initial=0) < 0:
            raise TensorError(f"{self.stored_scales.name} holds {found.min():g}; expected scales of zero or more")
        return self._per_group(found)

    def _per_group(self, stored: Float32Array) -> Float32Array:
        if self.group == self.stored_group:
            return stored
        return np.repeat(stored, self.stored_group // self.group, axis=1)[:, : self.shape[1] // self.group]

    def scale_chunks(self, first: int, rows: slice = slice(None)) -> Iterator[Float32Array]:
        for some in row_chunks((self.shape[0], self.shape[-1] // self.group), rows, first=first):
            self.stored_scales.read_now(some)
            yield self.scales(some)
            self.stored_scales.evict(some)

    def read_packed(self, rows: slice | RowIndices) -> PackedRows:
        stored, numbers = self.stored.data.reshape(self.stored.shape), row_numbers(rows, self.shape[0])
        words, dtype = self.stored_scales.floats(rows)  # the scales were checked when the plan was made
        scales = words.view(np.float32) if dtype == "F32" else self.scales(rows)
        return PackedRows(self.packing, stored, numbers, self.shape[1], self._per_group(scales), self.group)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        stored = np.ascontiguousarray(self.stored.data.reshape(self.stored.shape)[rows])
        fours = np.empty(stored.shape, np.uint32)
        largest = UNPACK(stored, stored.size, FOURS, fours)
        if largest is None:
            fours, largest = FOURS[stored], int(stored.max(initial=0))
        if largest > 80:
            raise TensorError(
                f"{self.name} holds the invalid byte {largest}; expected at most 80: the checkpoint is damaged"
            )
        codes = fours.view(np.int8)[:, : self.shape[1]]
        return CodedRows(np.ascontiguousarray(codes), self.scales(rows), self.group)


def pack(codes: npt.NDArray[np.int8]) -> ByteArray:
    """Return the bytes, (n_rows, n_columns / 4), of ternary rows, (n_rows, n_columns); n_columns is a multiple of 4."""
    digits = (codes.view(np.uint8) + np.uint8(1)).reshape(len(codes), -1, 4)
    packed: ByteArray = digits[..., 0] + 3 * digits[..., 1] + 9 * digits[..., 2] + 27 * digits[..., 3]
    return packed


def unpack_base3(packed: ByteArray, scales: Float32Array) -> Float32Array:
    """Return float32 weights, (n_rows, n_columns), of U8 rows, (n_rows, n_columns / 4), and scales, (n_rows, n_groups).

    >>> unpack_base3(np.array([[0 + 3 * 1 + 9 * 2 + 27 * 1]], np.uint8), np.array([[0.5]], np.float32))
    array([[-0.5,  0. ,  0.5,  0. ]], dtype=float32)
    """
    digits = packed[:, :, None] // np.array([1, 3, 9, 27], np.uint8) % 3
    trits = digits.reshape(len(packed), -1).astype(np.float32) - 1
    return trits * np.repeat(scales, trits.shape[1] // scales.shape[1], axis=1)


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether a U8 weight has `.scales` beside it; the published 14B file has no quantization_config."""
    return any(tensor.dtype == "U8" and name + SCALES in stored for name, tensor in stored.items())


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as Base3Tensor."""
    said = quantization(config)
    method, layout = said.text("quant_method"), said.text("packing")
    if said and (method, layout or LAYOUT) != (METHOD, LAYOUT):
        raise SourceError(
            f"config.json says quant_method {shown(method)} and packing {shown(layout)}, but the weights look base-3 "
            f"packed; expected {METHOD} and {LAYOUT}"
        )
    said_group = said.integer("group_size") if said.has("group_size") else None
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        if tensor.dtype == "U8":
            tensors[name] = _packed_tensor(tensor, stored, said_group)
        elif not (name.endswith(SCALES) and name.removesuffix(SCALES) in stored):
            tensors[name] = tensor
    return tensors


def _packed_tensor(tensor: StoredTensor, stored: StoredTensors, said_group: int | None) -> Base3Tensor:
    name = tensor.name
    if name + SCALES not in stored:
        raise SourceError(f"{name} is packed, but the checkpoint has no {name}{SCALES}: fetch it again")
    shape = stored[name + SCALES].shape
    if not _fits(tensor.shape, shape):
        raise SourceError(
            f"{name} of packed shape {tensor.shape} doesn't fit its scales of shape {shape}; expected as many rows, "
            "and one scale per group of columns"
        )
    group = 4 * tensor.shape[1] // shape[1]
    if said_group not in (None, group):
        raise SourceError(f"config.json says group_size {said_group}, but {name} has one scale per {group} columns")
    shape = (tensor.shape[0], 4 * tensor.shape[1])
    return Base3Tensor(name, PACKING.name, shape, group, tensor, stored[name + SCALES], group)


def _fits(packed: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    if len(packed) != 2 or len(scales) != 2 or packed[0] != scales[0] or 0 in (*packed, *scales):
        return False
    return 4 * packed[1] % scales[1] == 0


@dataclass(frozen=True)
class Base3Packer(Packer):
    """Writes codes and scales of rows that are padded to a multiple of `group` columns, itself a multiple of 4."""

    group: int

    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        n_rows, n_groups = shape[0], -(-shape[1] // self.group)
        packed = Entry(name, "U8", (n_rows, n_groups * self.group // 4))
        return packed, Entry(name + SCALES, "F32", (n_rows, n_groups))

    def pack(
        self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, constants: Constants
    ) -> list[Piece]:
        packed, scales = pack(rows.codes), rows.scales.astype("<f4").view(np.uint8)
        return [
            (name, chunk.start * packed.shape[1], packed),
            (name + SCALES, chunk.start * scales.shape[1], scales),
        ]


def packer(config: ConfigJson) -> Base3Packer:
    """Return the packer for quantization_config's group_size, a multiple of 4."""
    return Base3Packer(config["group_size"])


UNPACK = Kernel("look_up", np.uint8, int, np.uint32, np.uint32)
PACKING = Packing("base-3 packing", recognizes, read, packer)
