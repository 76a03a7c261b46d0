"""Hugging Face bitnet packing (BitNet 2B-4T, Falcon3-1.58bit): four rows' trits in one byte, and a scale beside.

`X.weight` is U8 (rows / 4, columns): with P = rows / 4, bits 2i and 2i+1 of byte (r, c) hold trit + 1 of row r + i·P.
`X.weight_scale` has one value, or one per row. config.json's `linear_class` tells how the model uses it:
`autobitlinear` multiplies by it; `bitlinear`, the default, divides by it. The reference is `pack_weights`, `BitLinear`
and `AutoBitLinear` in https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/bitnet.py.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

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
    Codes,
    Float32Array,
    PackedRows,
    PackedTensor,
    RowIndices,
    SourceTensor,
    row_chunks,
    row_numbers,
)
from tritgguf.converter.errors import SourceError, TensorError, UnsupportedError

SCALE = "_scale"
METHOD = "bitnet"


@dataclass(frozen=True)
class BitnetTensor(PackedTensor):
    """One packed tensor; `row_scales`, float32 (n_rows, 1), multiply the trits of each row."""

    stored: StoredTensor
    row_scales: Float32Array
    packing = "four rows"

    def scales(self, rows: slice) -> Float32Array:
        return self.row_scales[rows]

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return self.stored.on_disk(row_numbers(rows, self.shape[0]) % self.stored.shape[0])

    def read_packed(self, rows: slice | RowIndices) -> PackedRows:
        stored, numbers = self.stored.data.reshape(self.stored.shape), row_numbers(rows, self.shape[0])
        return PackedRows(self.packing, stored, numbers, self.shape[1], self.row_scales[rows], self.group)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        n_packed, n_columns = self.stored.shape
        packed = self.stored.data.reshape(n_packed, n_columns)
        wanted = row_numbers(rows, self.shape[0])
        codes: Codes = np.empty((len(wanted), n_columns), np.int8)
        invalid = UNPACK(packed, n_packed, n_columns, wanted, len(wanted), codes)
        if invalid is None:
            digits = packed[wanted % n_packed] >> (2 * (wanted // n_packed)).astype(np.uint8)[:, None] & 3
            codes, invalid = (digits - np.uint8(1)).view(np.int8), int((digits == 3).any())
        if invalid:
            raise TensorError(f"{self.name} holds the invalid code 3; expected 0, 1 or 2: the checkpoint is damaged")
        return CodedRows(codes, self.row_scales[wanted], n_columns)


def pack(codes: npt.NDArray[np.int8]) -> ByteArray:
    """Return the bytes, (n_rows / 4, n_columns), of ternary rows, (n_rows, n_columns); n_rows is a multiple of 4."""
    digits = (codes.view(np.uint8) + np.uint8(1)).reshape(4, -1, codes.shape[1])
    packed: ByteArray = digits[0] | digits[1] << 2 | digits[2] << 4 | digits[3] << 6
    return packed


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether a U8 weight has a weight_scale beside it; other methods that store this have their own quant_method."""
    if (quantization(config).text("quant_method") or METHOD) != METHOD:
        return False
    return any(tensor.dtype == "U8" and name + SCALE in stored for name, tensor in stored.items())


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as BitnetTensor."""
    quantized = quantization(config)
    if not quantized:
        raise SourceError(
            "config.json has no quantization_config, and only its linear_class tells whether the packed weights are "
            "multiplied by their scale or divided by it: fetch config.json again"
        )
    multiplies = _multiplies(quantized.text("linear_class"))
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        if tensor.dtype == "U8":
            if name + SCALE not in stored:
                raise SourceError(f"{name} is packed, but the checkpoint has no {name}{SCALE}: fetch it again")
            row_scales = _row_scales(stored[name + SCALE], tensor, multiplies)
            n_packed, n_columns = tensor.shape
            shape = (4 * n_packed, n_columns)
            tensors[name] = BitnetTensor(name, PACKING.name, shape, n_columns, tensor, row_scales)
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in stored):
            tensors[name] = tensor
    return tensors


def _multiplies(linear_class: str | None) -> bool:
    if linear_class in (None, "bitlinear"):
        return False
    if linear_class == "autobitlinear":
        return True
    raise UnsupportedError(
        f"config.json: quantization_config.linear_class is {shown(linear_class)}, which isn't known to multiply "
        "by the scale or to divide by it; expected autobitlinear or bitlinear"
    )


def _row_scales(scale: StoredTensor, packed: StoredTensor, multiplies: bool) -> Float32Array:
    if len(packed.shape) != 2:
        raise SourceError(f"{packed.name} has the shape {packed.shape}; expected packed rows and columns")
    n_rows = 4 * packed.shape[0]
    n_values = math.prod(scale.shape)
    if n_values not in (1, n_rows) or n_values == 0:
        raise SourceError(f"{scale.name} has {n_values} values; expected one, or one for each of {n_rows} rows")
    values = scale.read(slice(None)).reshape(-1)
    if (values <= 0).any():
        raise TensorError(f"{scale.name} holds {values.min():g}; expected scales above zero")
    factors = values if multiplies else np.float32(1) / values
    return np.broadcast_to(factors[:, None], (n_rows, 1)).astype(np.float32)


class BitnetPacker(Packer):
    """Writes codes and one scale per tensor; a chunk of packed rows holds rows of all four quarters of the tensor."""

    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        if shape[0] % 4:
            raise TensorError(
                f"{name} has {shape[0]} rows; bitnet packing needs a multiple of 4: choose another scheme"
            )
        return Entry(name, "U8", (shape[0] // 4, shape[1])), Entry(name + SCALE, "F32", (1,))

    def chunks(self, shape: tuple[int, ...]) -> Iterator[slice]:
        return row_chunks((shape[0] // 4, shape[1]))

    def rows(self, shape: tuple[int, ...], chunk: slice) -> RowIndices:
        return (np.arange(4)[:, None] * (shape[0] // 4) + np.arange(chunk.start, chunk.stop)).reshape(-1)

    def pack(
        self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, constants: Constants
    ) -> list[Piece]:
        pieces: list[Piece] = [(name, chunk.start * shape[1], pack(rows.codes))]
        if chunk.start == 0:
            pieces.append((name + SCALE, 0, constants[SCALE].view(np.uint8)))
        return pieces


UNPACK = Kernel("unpack_rows", np.uint8, int, int, np.int64, int, np.int8)
PACKING = Packing("bitnet packing", recognizes, read, lambda config: BitnetPacker())
