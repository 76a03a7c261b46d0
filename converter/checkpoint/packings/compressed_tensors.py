"""compressed-tensors: integer or 8-bit float codes with scales, as llm-compressor and GSQ write them.

`pack-quantized`: `X.weight_packed` is I32 (rows, words), codes of `num_bits` bits in words (scaled_codes.py), with
`X.weight_scale` and `X.weight_shape`, I64 (2,); asymmetric ones have `X.weight_zero_point`, I32, packed down columns.
`int-quantized`, `float-quantized` and `naive-quantized`: `X.weight` is I8 or F8_E4M3 (rows, columns), with
`X.weight_scale` and, if asymmetric, `X.weight_zero_point`. A scale belongs to the tensor, a row (strategy channel), a
group of columns or a block of rows and columns, as config_groups.py reads. The reference, which rounds weights to the
type of their scale: https://github.com/vllm-project/compressed-tensors.

Codes of 2 bits are four-level codes. GSQ stores such codes in 4 bits: they are recognized by their values.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from tritgguf.converter.checkpoint.config_groups import DTYPES, WORD_FORMAT, Storage, config_groups, storage_for
from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.four_level_words import word_tensor
from tritgguf.converter.checkpoint.module_patterns import ModuleNames
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.scaled_codes import (
    Items,
    PerBlock,
    ScaledTensor,
    Words,
    WordsDown,
    n_words,
    per_block,
    scales_per_block,
)
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError

METHOD = "compressed-tensors"
PACKED, WEIGHT, SCALE, ZEROS, SHAPE = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape")
ORDER = "weight_g_idx"
# How activations and the KV cache are rounded at run time: llama.cpp doesn't round them.
ACTIVATIONS = tuple(f"{what}_{kind}" for what in ("input", "output") for kind in ("scale", "zero_point"))
KV_CACHE = tuple(f"{what}_{kind}" for what in ("q", "k", "v") for kind in ("scale", "zero_point"))
PARTS = (PACKED, WEIGHT, SCALE, ZEROS, SHAPE, ORDER, *ACTIVATIONS)


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names this packing."""
    return quantization(config).get("quant_method") == METHOD


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as FourLevelTensor or ScaledTensor."""
    said = quantization(config)
    _refuse_variants(said)
    groups = config_groups(said)
    ignored = ModuleNames(said.texts("ignore") or [], said.name("ignore"))
    packed = _packed_modules(stored)
    if not packed:
        raise SourceError(
            f"{said.name('quant_method')} is {METHOD}, but no tensor is packed: fetch the checkpoint again, or give "
            "the model as floats, without quantization_config"
        )
    dropped = KV_CACHE if said.has("kv_cache_scheme") else ()
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part not in dropped and not (module in packed and part in PARTS):
            tensors[name] = tensor
    for module, stored_part in packed.items():
        if ignored.match(module):
            raise SourceError(f"{said.name('ignore')} lists {shown(module)}, but its weight is packed: fetch it again")
        tensors[f"{module}.{WEIGHT}"] = _Module(module, stored_part, stored, *storage_for(module, groups)).read()
    return tensors


def _refuse_variants(said: Settings) -> None:
    """Raise UnsupportedError for what isn't read: rotations at run time, experts left out, and sparse weights."""
    if said.object("transform_config").object("config_groups"):
        raise UnsupportedError(
            f"{said.name('transform_config')} rotates activations as the model computes, which no graph of llama.cpp "
            "does: give a checkpoint without transforms"
        )
    if said.object("moe_sparsity_config"):
        raise UnsupportedError(
            f"{said.name('moe_sparsity_config')} leaves experts out, which isn't read: give a checkpoint with all"
        )
    sparsity = said.object("sparsity_config")
    if sparsity.text("format") not in (None, "dense"):
        raise UnsupportedError(
            f"{sparsity.name('format')} {shown(sparsity['format'])} isn't read: give a checkpoint that isn't sparse"
        )


def _packed_modules(stored: StoredTensors) -> dict[str, str]:
    """Return what holds the codes of each packed module."""
    packed = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part == PACKED or (part == WEIGHT and tensor.dtype in DTYPES.values()):
            packed[module] = part
    return packed


class _Module:
    """One packed module: its name, the part that holds its codes, and how config.json says that it is stored."""

    def __init__(self, name: str, part: str, stored: StoredTensors, where: str, storage: Storage) -> None:
        self.name, self.stored, self.where, self.storage = name, stored, where, storage
        self.weight = f"{name}.{WEIGHT}"
        self.codes = stored[f"{name}.{part}"]
        if (part == PACKED) != (storage.format == WORD_FORMAT):
            raise SourceError(
                f"{where} has the format {storage.format}, but the checkpoint holds {self.codes.name}: it is damaged, "
                "or config.json belongs to another"
            )
        if len(self.codes.shape) != 2 or 0 in self.codes.shape:
            raise SourceError(f"{self.codes.name} has the shape {self.codes.shape}; expected rows and columns")
        self._require_order()

    def read(self) -> SourceTensor:
        return self._words() if self.storage.format == WORD_FORMAT else self._items()

    def _items(self) -> SourceTensor:
        codes = _of_dtype(self.codes, DTYPES[self.storage.kind])
        scales = self._scales(codes.shape)
        zeros = None
        if not self.storage.symmetric:
            zeros = per_block(_of_dtype(self._part(ZEROS), codes.dtype), codes.shape, scales.block)
        return self._floats(codes.shape, Items(codes), scales, zeros)

    def _words(self) -> SourceTensor:
        bits, shape = self.storage.bits, self._shape()
        packed = _of_dtype(self.codes, "I32")
        if packed.shape != (shape[0], n_words(shape[1], bits)):
            raise SourceError(
                f"{packed.name} has the shape {packed.shape}, which doesn't hold {shape} weights of {bits} bits, as "
                f"{self.name}.{SHAPE} and {self.where} say: the checkpoint is damaged"
            )
        words, scales = Words(packed, bits, shape[1]), self._scales(shape)
        if self.storage.symmetric:
            return word_tensor(self.weight, PACKING.name, words, scales, self._part(SCALE).dtype)
        return self._floats(shape, words, scales, self._packed_zeros(shape, scales))

    def _floats(
        self, shape: tuple[int, ...], codes: Items | Words, scales: PerBlock, zeros: PerBlock | None
    ) -> ScaledTensor:
        return ScaledTensor(self.weight, PACKING.name, shape, codes, scales, self._part(SCALE).dtype, zeros)

    def _scales(self, shape: tuple[int, ...]) -> PerBlock:
        return scales_per_block(self._part(SCALE), shape, self.storage.block_of(shape, self.weight))

    def _packed_zeros(self, shape: tuple[int, ...], scales: PerBlock) -> PerBlock:
        zeros = _of_dtype(self._part(ZEROS), "I32")
        wanted = (n_words(shape[0], self.storage.bits), shape[1] // scales.block[1])
        if self.storage.strategy not in ("channel", "group") or zeros.shape != wanted:
            raise SourceError(
                f"{zeros.name} has the shape {zeros.shape}; expected {wanted}, packed zero points of channels or groups"
            )
        return PerBlock(WordsDown(zeros, self.storage.bits), scales.block)

    def _shape(self) -> tuple[int, int]:
        tensor = self._part(SHAPE)
        _of_dtype(tensor, "I64", "I32")
        sizes = tensor.data.copy().view("<i8" if tensor.dtype == "I64" else "<i4").tolist()
        if len(sizes) != 2 or min(sizes) < 1:
            raise SourceError(f"{tensor.name} holds {shown(sizes)}; expected the numbers of rows and of columns")
        return sizes[0], sizes[1]

    def _require_order(self) -> None:
        """Raise UnsupportedError if the columns that share a scale aren't neighbours."""
        if not self.storage.reordered and f"{self.name}.{ORDER}" not in self.stored:
            return
        order = self._part(ORDER)
        groups = _of_dtype(order, "I32").data.copy().view("<i4")
        if not (groups == -1).all() and not np.array_equal(groups, np.arange(len(groups)) // self.storage.group):
            raise UnsupportedError(
                f"{order.name} reorders the columns (actorder group), so those of a scale aren't neighbours, which no "
                "tensor type here stores: give a checkpoint with actorder weight, or without"
            )

    def _part(self, part: str) -> StoredTensor:
        name = f"{self.name}.{part}"
        if name not in self.stored:
            raise SourceError(f"{self.weight} is packed, but the checkpoint has no {name}: fetch it again")
        return self.stored[name]


def _of_dtype(tensor: StoredTensor, *dtypes: str) -> StoredTensor:
    if tensor.dtype not in dtypes:
        raise SourceError(f"{tensor.name} holds {tensor.dtype}; expected {' or '.join(dtypes)}")
    return tensor


PACKING = Packing("compressed-tensors", recognizes, read)
