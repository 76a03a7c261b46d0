"""What a codec is: one GGUF tensor type, and how values become its bytes.

Float codecs take float32 rows; ternary codecs take CodedRows and give them back unchanged:
`unpack(pack(rows)) == rows` whenever the scales are fp16 values.
"""

from __future__ import annotations

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
    no file with a tensor of it.
    `grid_levels` are the grids, by their number of levels, that `pack_grid` stores better than floats would be.
    """

    name: str
    ggml_type: GGMLQuantizationType
    file_type: LlamaFileType
    block: int
    block_bytes: int
    ternary: bool
    runs_on: tuple[str, ...] = ()
    refused_by: tuple[str, ...] = ()
    slow_on_x86: bool = False
    for_linear: bool = True
    grid_levels: tuple[int, ...] = ()

    @abstractmethod
    def decode(self, stored: ByteArray) -> Float32Array:
        """Return the float32 values, shape (n_rows, n_columns), of rows of bytes, shape (n_rows, row bytes)."""

    @property
    def bits_per_weight(self) -> float:
        """Return the bits that a value takes, scales included."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, n_columns: int) -> int:
        """Return the bytes of a row of `n_columns` values, which must be a multiple of the block."""
        return n_columns // self.block * self.block_bytes

    def pack_grid(self, codes: Float32Array, steps: Float32Array) -> ByteArray:
        """Return blocks, (n_blocks, block_bytes), of values code · step per 16 columns, by least squared error.

        `codes` is (n_blocks, block / 16, 16), `steps` (n_blocks, block / 16).
        """
        raise NotImplementedError(f"{self.name} knows no grids")


class AnyGgmlType(Codec):
    """Whatever type a tensor of a GGUF source has: it can be decoded and passed through, not encoded."""

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
    """A type that stores floats; `holds_dtypes` are the source dtypes whose every value it keeps."""

    ternary: Literal[False] = False
    holds_dtypes: tuple[str, ...] = ()

    def holds(self, dtype: str) -> bool:
        """Whether every finite value of that dtype comes back unchanged."""
        return dtype in self.holds_dtypes

    def keeps(self, values: Float32Array) -> bool:
        """Whether every one of these values comes back unchanged."""
        try:
            return np.array_equal(self.decode(self.encode(values)), values)
        except TensorError:  # beyond the type's range, which is an error only if it is stored so
            return False

    def encode_stored(self, floats: Floats) -> ByteArray | None:
        """Return the same for stored floats, where that is quicker and all are finite and in range; else None."""
        return None

    @abstractmethod
    def encode(self, values: Float32Array) -> ByteArray:
        """Return the bytes of float32 rows, shape (n_rows, row bytes); raise TensorError where one is out of range."""


class TernaryCodec(Codec):
    """A type that stores ternary codes with one fp16 scale per block.

    In a block the codes begin at `codes_at`, where `kernel` writes them; the scale stands at each of `scales_at`.
    """

    ternary: Literal[True] = True
    codes_at: int
    scales_at: tuple[int, ...]
    kernel: Kernel

    def pack(self, rows: CodedRows) -> ByteArray:
        """Return the bytes of ternary rows, shape (n_rows, row bytes); the scales are rounded to fp16."""
        packed = self.pack_stored(PackedRows.of(rows))
        if packed is None:
            blocks = self.new_blocks(*rows.codes.shape)
            self.put_codes(rows.codes.reshape(-1, self.block), blocks.reshape(-1, self.block_bytes))
            packed = self._scaled(blocks, rows.scales, rows.group)
        return packed

    def pack_stored(self, rows: PackedRows) -> ByteArray | None:
        """Return the same for rows as they are stored; None where there is no kernel or a code stands for nothing."""
        blocks = self.new_blocks(len(rows.numbers), rows.n_columns)
        codes = blocks.reshape(-1)[self.codes_at :]
        stored, shape = (rows.stored, *rows.stored.shape), (len(rows.numbers), rows.n_columns)
        packing = PACKINGS.index(rows.packing)
        if self.kernel(packing, *stored, rows.numbers, *shape, codes, self.block_bytes) != 0:
            return None
        return self._scaled(blocks, rows.scales, rows.group)

    def new_blocks(self, n_rows: int, n_columns: int) -> ByteArray:
        """Return blocks to be filled, shape (n_rows, n_blocks, block_bytes)."""
        return np.empty((n_rows, n_columns // self.block, self.block_bytes), np.uint8)

    @abstractmethod
    def put_codes(self, codes: Codes, blocks: ByteArray) -> None:
        """Write codes, shape (n_blocks, block), into blocks, shape (n_blocks, block_bytes), as the kernel does."""

    def _scaled(self, blocks: ByteArray, scales: Float32Array, group: int) -> ByteArray:
        put_scales(scales, group, self.block, blocks, *self.scales_at)
        return blocks.reshape(len(blocks), -1)

    def decode(self, stored: ByteArray) -> Float32Array:
        return self.unpack(stored).dequantize()

    @abstractmethod
    def unpack(self, stored: ByteArray) -> CodedRows:
        """Return codes and scales of packed rows, shape (n_rows, row bytes); raise TensorError on invalid codes."""


AnyCodec: TypeAlias = FloatCodec | TernaryCodec  # told apart by `ternary`


def codecs() -> dict[str, AnyCodec]:
    """Return every codec by its name."""
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
    """Return the codec of that name; raise UnsupportedError listing the names there are."""
    known = codecs()
    if name not in known:
        raise UnsupportedError(f"unknown tensor type {name!r}; expected one of {', '.join(known)}")
    return known[name]


def fp16(values: Float32Array) -> Float32Array:
    """Round to fp16 and back: the value a scale has once stored; infinite beyond fp16's range."""
    words, largest = narrowed(Floats.of(values))
    if largest < BEYOND_F16:
        return widened(Floats(words, "F16"))
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def put_scales(scales: Float32Array, group: int, block: int, blocks: ByteArray, *offsets: int) -> None:
    """Write each block's scale as fp16 at these offsets into `blocks`, shape (n_rows, n_blocks, block bytes).

    `scales` is (n_rows, n_groups). Raises TensorError where one overflows, ValueError where the groups in a block have
    several.
    """
    if group % block:
        narrow = scales.reshape(*blocks.shape[:2], -1)  # groups that share a scale all the same
        scales = narrow.max(axis=-1)
        if ((narrow != scales[..., None]) & (narrow != 0)).any():
            raise ValueError(f"groups of {group} columns don't share one scale in blocks of {block}")
    scales, repeat, largest = np.ascontiguousarray(scales), max(group // block, 1), 0.0
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
            f"a block's scale is {scales.max():g}, but fp16 ends at 65504: store this tensor as f16 or f32"
        )


def stored_scales(stored: ByteArray) -> Float32Array:
    """Return the fp16 scales, shape (n_rows, n_blocks), of their bytes, shape (n_rows, n_blocks, 2)."""
    return np.ascontiguousarray(stored).view("<f2")[..., 0].astype(np.float32)


def pack_kernel(name: str) -> Kernel:
    """Return the kernel of that name, which writes the codes of a type's blocks."""
    return Kernel(name, int, np.uint8, int, int, np.int64, int, int, np.uint8, int)


PUT_SCALES = Kernel("put_scales", np.float32, int, int, np.uint8, int, int)
