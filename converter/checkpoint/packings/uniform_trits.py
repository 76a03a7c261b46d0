"""Uniform trits: each group of 16 columns as base-3 digits, first the index of its scale, then its codes.

`X.weight.trits` is U8 (blocks, 27), one stream of trits per matrix (trit_packing.py), row by row: for each group three
digits of its scale's index, then the digits of code + k of its 16 values, each number's lowest digit first; zeros fill
the last block. `X.weight.steps` is F32 (27,), in rising order: weight = code · step. `X.weight.shape` is I64 (2,): rows
and columns. config.json's `digits` is the number of digits per code. docs/formats.md describes the layout.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.packer import Constants, Packer, Piece
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.kernels import Kernel
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Codes,
    Float32Array,
    RowIndices,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.errors import SourceError, TensorError
from tritgguf.converter.quant.trit_packing import BLOCK, BLOCK_BYTES, pack_trits, unpack_trits
from tritgguf.converter.quant.uniform import ENTRIES, GROUP, INDEX_TRITS, highest_code

METHOD = "uniform_balanced_ternary"
TRITS, STEPS, SHAPE = ".trits", ".steps", ".shape"
MOST_DIGITS = 3


def row_trits(n_columns: int, digits: int) -> int:
    """Return the number of trits in a row."""
    return n_columns // GROUP * (INDEX_TRITS + GROUP * digits)


def n_blocks(shape: tuple[int, ...], digits: int) -> int:
    """Return the number of blocks in a matrix."""
    return -(-shape[0] * row_trits(shape[1], digits) // BLOCK)


def packed_groups(rows: CodedRows, steps: Float32Array, digits: int) -> ByteArray:
    """Return the bytes, uint8 (n_blocks, 27), of codes and scales; the scales must be among `steps`."""
    codes, scales = np.ascontiguousarray(rows.codes), np.ascontiguousarray(rows.scales)
    n_trits = scales.size * row_trits(GROUP, digits)
    stored: ByteArray = np.empty((-(-n_trits // BLOCK), BLOCK_BYTES), np.uint8)
    if PACK(codes, scales, scales.size, np.ascontiguousarray(steps, np.float32), digits, stored) is None:
        stored = pack_trits(np.pad(trits_of(rows, steps, digits), (0, -n_trits % BLOCK)))
    return stored


def trits_of(rows: CodedRows, steps: Float32Array, digits: int) -> ByteArray:
    """Return the base-3 digits of codes and scales as one sequence; the scales must be among `steps`."""
    indices = np.searchsorted(steps, rows.scales.reshape(-1)).astype(np.uint8)
    codes = (rows.codes + np.int8(highest_code(digits))).view(np.uint8).reshape(-1, GROUP)
    stream = np.empty((len(codes), INDEX_TRITS + GROUP * digits), np.uint8)
    for place in range(INDEX_TRITS):
        stream[:, place] = indices // np.uint8(3**place) % np.uint8(3)
    for place in range(digits):
        stream[:, INDEX_TRITS + place :: digits] = codes // np.uint8(3**place) % np.uint8(3)
    return stream.reshape(-1)


@dataclass(frozen=True)
class UniformTensor(CodedTensor):
    """One packed matrix."""

    packed: StoredTensor
    steps: Float32Array
    digits: int

    @property
    def levels(self) -> int:
        return 2 * highest_code(self.digits) + 1

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
        else:
            start, stop = int(rows.min()), int(rows.max()) + 1
        return [self._blocks(start, stop)]

    def scales(self, rows: slice) -> Float32Array:
        return self.read_codes(rows).scales

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._decoded(start, stop)
        parts = [self._decoded(first, last + 1) for first, last in _runs(rows)]
        codes = np.concatenate([part.codes for part in parts])
        return CodedRows(codes, np.concatenate([part.scales for part in parts]), GROUP)

    def _blocks(self, start: int, stop: int) -> ByteArray:
        """Return the blocks that contain those rows."""
        per_row = row_trits(self.shape[1], self.digits)
        return self.packed.data.reshape(-1, BLOCK_BYTES)[start * per_row // BLOCK : -(-stop * per_row // BLOCK)]

    def _decoded(self, start: int, stop: int) -> CodedRows:
        per_row = row_trits(self.shape[1], self.digits)
        blocks, skipped = np.ascontiguousarray(self._blocks(start, stop)), start * per_row % BLOCK
        shape = (stop - start, self.shape[1])
        codes: Codes = np.empty(shape, np.int8)
        indices: ByteArray = np.empty((shape[0], shape[1] // GROUP), np.uint8)
        n_invalid = UNPACK(blocks, skipped, indices.size, self.digits, codes, indices)
        if n_invalid is None:
            stream = unpack_trits(blocks)[skipped:][: shape[0] * per_row]
            n_invalid = int((stream > 2).sum())
            groups = stream.reshape(-1, INDEX_TRITS + GROUP * self.digits)
            places = 3 ** np.arange(max(INDEX_TRITS, self.digits))
            indices = (groups[:, :INDEX_TRITS] @ places[:INDEX_TRITS]).astype(np.uint8).reshape(indices.shape)
            numbers = groups[:, INDEX_TRITS:].reshape(len(groups), GROUP, self.digits) @ places[: self.digits]
            codes = (numbers - highest_code(self.digits)).astype(np.int8).reshape(shape)
        if n_invalid:
            raise TensorError(f"{self.name} holds an invalid number, 3^17 or more: the checkpoint is damaged")
        return CodedRows(codes, self.steps[indices], GROUP)


def _runs(rows: RowIndices) -> list[tuple[int, int]]:
    """Return first and last of each run of consecutive rows."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(run[0]), int(run[-1])) for run in np.split(rows, breaks) if len(run)]


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names this packing."""
    return quantization(config).get("quant_method") == METHOD


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as UniformTensor."""
    said = quantization(config)
    digits = said.integer("digits", most=MOST_DIGITS)
    if said.integer("group_size") != GROUP:
        raise said.wrong("group_size", str(GROUP))
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        weight = name.removesuffix(TRITS)
        if weight != name:
            tensors[weight] = _packed_tensor(weight, stored, digits)
        elif not name.endswith((STEPS, SHAPE)) or name.rsplit(".", 1)[0] + TRITS not in stored:
            tensors[name] = tensor
    return tensors


def _packed_tensor(name: str, stored: StoredTensors, digits: int) -> UniformTensor:
    packed = stored[name + TRITS]
    for suffix, dtype, size in ((STEPS, "F32", (ENTRIES,)), (SHAPE, "I64", (2,))):
        beside = stored.get(name + suffix)
        if beside is None or (beside.dtype, beside.shape) != (dtype, size):
            found = "nothing" if beside is None else f"{beside.dtype} {beside.shape}"
            raise SourceError(f"{name + suffix} should be {dtype} {size}, found {found}: fetch the checkpoint again")
    n_rows, n_columns = (int(size) for size in stored[name + SHAPE].data.copy().view("<i8"))
    shape = (n_rows, n_columns)
    fits = min(shape) > 0 and shape[1] % GROUP == 0 and packed.shape == (n_blocks(shape, digits), BLOCK_BYTES)
    if not fits or packed.dtype != "U8":
        raise SourceError(
            f"{name + TRITS} is {packed.dtype} {packed.shape}, which doesn't hold the {shape} values that "
            f"{name + SHAPE} asks for: the checkpoint is damaged"
        )
    steps = stored[name + STEPS].read(slice(None)).reshape(-1)
    if (np.diff(steps) < 0).any() or steps[0] < 0:
        raise TensorError(f"{name + STEPS} should be zero or more and in rising order: the checkpoint is damaged")
    return UniformTensor(name, PACKING.name, shape, GROUP, packed, packed, steps, digits)


@dataclass(frozen=True)
class TritPacker(Packer):
    """Writes the trits of one matrix as one stream; every chunk starts with a row that starts a block."""

    digits: int

    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        if shape[1] % GROUP:
            raise TensorError(f"{name}: rows of {shape[1]} values aren't a multiple of {GROUP}: choose another scheme")
        return (
            Entry(name + TRITS, "U8", (n_blocks(shape, self.digits), BLOCK_BYTES)),
            Entry(name + STEPS, "F32", (ENTRIES,)),
            Entry(name + SHAPE, "I64", (2,)),
        )

    def chunks(self, shape: tuple[int, ...]) -> Iterator[slice]:
        aligned = BLOCK // math.gcd(BLOCK, row_trits(shape[1], self.digits))  # this many rows fill whole blocks
        usual = next(row_chunks(shape))
        step = max(1, usual.stop // aligned) * aligned
        for start in range(0, shape[0], step):
            yield slice(start, min(start + step, shape[0]))

    def pack(
        self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, constants: Constants
    ) -> list[Piece]:
        packed = packed_groups(rows, constants[STEPS], self.digits)
        offset = chunk.start * row_trits(shape[1], self.digits) // BLOCK * BLOCK_BYTES
        pieces: list[Piece] = [(name + TRITS, offset, packed)]
        if chunk.start == 0:
            pieces.append((name + STEPS, 0, constants[STEPS].view(np.uint8)))
            pieces.append((name + SHAPE, 0, np.array(shape, "<i8").view(np.uint8)))
        return pieces


PACK = Kernel("pack_groups", np.int8, np.float32, int, np.float32, int, np.uint8)
UNPACK = Kernel("unpack_groups", np.uint8, int, int, int, np.int8, np.uint8)
PACKING = Packing("uniform trits", recognizes, read, lambda config: TritPacker(config["digits"]))
