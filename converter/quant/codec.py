"""A codec packs values into the bytes of one GGUF tensor type, and unpacks them.

Float codecs encode float32 rows. Ternary codecs pack CodedRows, some of them also those of four-level grids, and
`unpack(pack(rows)) == rows` if the scales are fp16 values. ggml defines the layouts:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, TypeAlias, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.floats import BEYOND_F16, narrowed, widened
from tritgguf.converter.core.kernels import PACKINGS, Kernel
from tritgguf.converter.core.registry import by_name
from tritgguf.converter.core.tensors import ByteArray, CodedRows, Codes, Float32Array, Floats, PackedRows
from tritgguf.converter.errors import TensorError, UnsupportedError

# Where programs run a file: the targets of `--for` but "any", which means all of these.
EVERYWHERE = ("cpu", "cuda", "metal", "vulkan", "ollama")


class Codec(ABC):
    """One GGUF tensor type: `block` values of a row become `block_bytes` bytes.

    `runs_on` are the targets where the pinned llama.cpp has fast kernels for the type; elsewhere it runs, if at all, on
    the CPU or by unpacked arithmetic, and `--type auto` doesn't choose it. Programs of the targets in `refused_by` load
    no file with a tensor of it. `rows_read_on` are the targets that look rows up in it, as token embeddings need: the
    types of GGML_OP_GET_ROWS in the pinned llama.cpp (ggml-cpu/ops.cpp; `supports_op` in ggml-cuda/ggml-cuda.cu,
    ggml-metal/ggml-metal-device.m and ggml-vulkan/ggml-vulkan.cpp).
    `grid_levels` are the grids, by their number of levels, that `pack_grid` stores better than floats would be.
    """

    name: str
    ggml_type: GGMLQuantizationType
    file_type: LlamaFileType
    block: int
    block_bytes: int
    ternary: bool
    runs_on: tuple[str, ...] = ()
    rows_read_on: tuple[str, ...] = EVERYWHERE
    refused_by: tuple[str, ...] = ()
    slow_on_x86: bool = False
    for_linear: bool = True
    grid_levels: tuple[int, ...] = ()
    values_kernel: Kernel | None = None

    @abstractmethod
    def decode(self, stored: ByteArray) -> Float32Array:
        """Return the float32 values, (n_rows, n_columns), of packed rows, uint8 (n_rows, row bytes)."""

    @property
    def bits_per_weight(self) -> float:
        """The bits per value, scales included."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, n_columns: int) -> int:
        """Return the number of bytes of a row of `n_columns` values, a multiple of the block."""
        return n_columns // self.block * self.block_bytes

    def dequantize(self, stored: ByteArray) -> Float32Array:
        """Return the float32 values, (n_rows, n_columns), of any blocks of the type, as gguf's reader does."""
        values: Float32Array = np.empty((len(stored), stored.shape[1] // self.block_bytes * self.block), np.float32)
        kernel = self.values_kernel
        if kernel is None or kernel(np.ascontiguousarray(stored), values.size // self.block, values) is None:
            values = quants.dequantize(stored, self.ggml_type)
        return values

    def pack_grid(self, codes: Codes, steps: Float32Array) -> ByteArray:
        """Return the blocks of least squared error, uint8 (n_blocks, block_bytes), for the values code · step.

        `codes` is (n_blocks, block / 16, 16), from -13 to 13; `steps` (n_blocks, block / 16), zero or more: 16 columns
        share a step. Raise TensorError if a step is out of the type's range.
        """
        raise NotImplementedError(f"{self.name} can't pack grids")


class AnyGgmlType(Codec):
    """The type of a GGUF tensor for passthrough: it can be decoded, not encoded."""

    ternary = False
    for_linear = False

    def __init__(self, ggml_type: GGMLQuantizationType) -> None:
        self.name, self.ggml_type = ggml_type.name.lower(), ggml_type
        self.block, self.block_bytes = GGML_QUANT_SIZES[ggml_type]
        names = (f"MOSTLY_{ggml_type.name}", f"ALL_{ggml_type.name}")
        like = [kind for kind in LlamaFileType if kind.name.startswith(names)]
        self.file_type = like[0] if like else LlamaFileType.GUESSED

    def decode(self, stored: ByteArray) -> Float32Array:
        return quants.dequantize(stored, self.ggml_type)


class FloatCodec(Codec):
    """A type that stores floats; `holds_dtypes` are the source dtypes of which it stores every value exactly."""

    ternary: Literal[False] = False
    holds_dtypes: tuple[str, ...] = ()

    def holds(self, dtype: str) -> bool:
        """Whether the type stores every finite value of that dtype exactly."""
        return dtype in self.holds_dtypes

    def keeps(self, values: Float32Array) -> bool:
        """Whether the type stores all of these values exactly."""
        try:
            return np.array_equal(self.decode(self.encode(values)), values)
        except TensorError:  # a value is out of range: an error only when the tensor is stored as this type
            return False

    def encode_stored(self, floats: Floats) -> ByteArray | None:
        """Return the same bytes for stored floats, without a detour through float32.

        Return None if the type has no such way, or if a value is out of range or not finite.
        """
        return None

    @abstractmethod
    def encode(self, values: Float32Array) -> ByteArray:
        """Return the bytes, uint8 (n_rows, row bytes), of float32 rows (n_rows, n_columns).

        Raise TensorError if a value is out of the type's range.
        """


class TernaryCodec(Codec):
    """A type that stores ternary codes with one fp16 scale per block.

    `exact_levels` are the grids, by their number of levels, whose codes it stores. In a block, `kernel` writes the
    codes from byte `codes_at` on, and each of `scales_at` is the offset of a scale.
    `more_levels` tells whether the type has more levels than these, so that a tensor on no grid, such as token
    embeddings, would lose too much by three of them; `any_floats` stores such a tensor in the type, None if none does.
    """

    ternary: Literal[True] = True
    exact_levels: tuple[int, ...] = (3,)
    more_levels: bool = False
    any_floats: FloatCodec | None = None
    codes_at: int
    scales_at: tuple[int, ...]
    kernel: Kernel

    def pack(self, rows: CodedRows) -> ByteArray:
        """Return the bytes of rows, uint8 (n_rows, row bytes); scales are rounded to fp16.

        Raise TensorError if a scale overflows fp16, ValueError if columns of a block have different scales.
        """
        packed = self.pack_stored(PackedRows.of(rows))
        if packed is None:
            blocks = self.new_blocks(*rows.codes.shape)
            self.put_codes(rows.codes.reshape(-1, self.block), blocks.reshape(-1, self.block_bytes))
            packed = self._scaled(blocks, rows.scales, rows.group)
        return packed

    def pack_stored(self, rows: PackedRows) -> ByteArray | None:
        """Return the same bytes for rows in a checkpoint's packing; None without a kernel or if a code is invalid."""
        blocks = self.new_blocks(len(rows.numbers), rows.n_columns)
        codes = blocks.reshape(-1)[self.codes_at :]
        stored, shape = (rows.stored, *rows.stored.shape), (len(rows.numbers), rows.n_columns)
        packing = PACKINGS.index(rows.packing)
        if self.kernel(packing, *stored, rows.numbers, *shape, codes, self.block_bytes) != 0:
            return None
        return self._scaled(blocks, rows.scales, rows.group)

    def new_blocks(self, n_rows: int, n_columns: int) -> ByteArray:
        """Return blocks to fill, uint8 (n_rows, n_blocks, block_bytes)."""
        return np.empty((n_rows, n_columns // self.block, self.block_bytes), np.uint8)

    @abstractmethod
    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        """Write codes, (n_blocks, block), into blocks, (n_blocks, block_bytes), as the kernel does."""

    def _scaled(self, blocks: ByteArray, scales: Float32Array, group: int) -> ByteArray:
        put_scales(scales, group, self.block, blocks, *self.scales_at)
        return blocks.reshape(len(blocks), -1)

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.unpack(stored).dequantize()

    @abstractmethod
    def unpack(self, stored: ByteArray) -> CodedRows:
        """Return the codes and scales of packed rows, uint8 (n_rows, row bytes); raise TensorError on invalid codes."""


AnyCodec: TypeAlias = FloatCodec | TernaryCodec  # told apart by `ternary`


def codecs() -> dict[str, AnyCodec]:
    """Return every codec by its name."""
    return cast("dict[str, AnyCodec]", by_name("tritgguf.converter.quant.codecs", "CODEC", Codec))


def float_codecs() -> dict[str, FloatCodec]:
    """Return the codecs of float types by their names."""
    return {name: codec for name, codec in codecs().items() if codec.ternary is False}


def ternary_codecs() -> dict[str, TernaryCodec]:
    """Return the codecs of ternary types by their names."""
    return {name: codec for name, codec in codecs().items() if codec.ternary is True}


def float_codec(name: str) -> FloatCodec:
    """Return a float type's codec; the name must be known."""
    return float_codecs()[name]


def ternary_codec(name: str) -> TernaryCodec:
    """Return a ternary type's codec; the name must be known."""
    return ternary_codecs()[name]


def codec_named(name: str) -> AnyCodec:
    """Return the codec of that name; raise UnsupportedError, with the known names, if there is none."""
    known = codecs()
    if name not in known:
        raise UnsupportedError(f"unknown tensor type {name!r}; expected one of {', '.join(known)}")
    return known[name]


def fp16(values: Float32Array) -> Float32Array:
    """Round float32 values to fp16 and back, as storing does to scales; values out of range become infinite."""
    words, largest = narrowed(Floats.of(values))
    if largest < BEYOND_F16:
        return widened(Floats(words, "F16"))
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def put_scales(scales: Float32Array, group: int, block: int, blocks: ByteArray, *offsets: int) -> None:
    """Write each block's scale as fp16 at these offsets into `blocks`, uint8 (n_rows, n_blocks, block_bytes).

    `scales` is float32 (n_rows, n_groups). Raise TensorError if a scale overflows fp16, ValueError if the groups in a
    block have different scales.
    """
    repeat = group // block
    if group % block:
        unit = math.gcd(group, block)  # of which neighbours fill whole groups, and others whole blocks
        narrow = np.repeat(scales, group // unit, axis=1).reshape(*blocks.shape[:2], -1)
        most, least, repeat = narrow.max(axis=-1), narrow.min(axis=-1), 1
        scales = np.where(-least > most, least, most)
        if ((narrow != scales[..., None]) & (narrow != 0)).any():
            raise ValueError(f"a block of {block} columns holds groups of {group} columns with different scales")
    scales, largest = np.ascontiguousarray(scales), 0.0
    for offset in offsets:
        bits = PUT_SCALES(scales, scales.size, repeat, blocks, blocks.shape[-1], offset)
        if bits is not None:
            largest = float(np.uint32(bits).view(np.float32))
        else:
            halves, largest = narrowed(Floats.of(scales))
            stored = np.repeat(halves, repeat, axis=1).view(np.uint8)
            blocks[..., offset : offset + 2] = stored.reshape(*blocks.shape[:2], 2)
    if not largest < BEYOND_F16:
        raise TensorError(
            f"a block's scale is {scales.max():g}, but fp16 ends at 65504: store this tensor as bf16 or f32"
        )


def stored_scales(stored: ByteArray) -> Float32Array:
    """Return fp16 scales as float32, (n_rows, n_blocks), from their bytes, uint8 (n_rows, n_blocks, 2)."""
    return np.ascontiguousarray(stored).view("<f2")[..., 0].astype(np.float32)


def pack_kernel(name: str) -> Kernel:
    """Return the kernel of that name, one that packs codes into a type's blocks."""
    return Kernel(name, int, np.uint8, int, int, np.int64, int, int, np.uint8, int)


def values_kernel(name: str) -> Kernel:
    """Return the kernel of that name, one that computes the values of a type's blocks."""
    return Kernel(name, np.uint8, int, np.float32)


def floats_kernel(name: str) -> Kernel:
    """Return the kernel of that name, one that searches blocks for floats: values, number, numbers to try, blocks."""
    return Kernel(name, np.float32, int, np.float32, int, np.uint8)


def grid_kernel(name: str) -> Kernel:
    """Return the kernel of that name, one that searches blocks for a grid: codes, steps, and then as for floats."""
    return Kernel(name, np.int8, np.float32, int, np.float32, int, np.uint8)


PUT_SCALES = Kernel("put_scales", np.float32, int, int, np.uint8, int, int)
