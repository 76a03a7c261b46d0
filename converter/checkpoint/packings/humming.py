"""humming: integer codes in words under the plain name `X.weight`, as GSQ's checkpoints for vLLM hold them.

`X.weight` is I32 (rows, words), codes of 2, 4 or 8 bits in words (scaled_codes.py); `X.weight_scale` has one value per
group of `weight_scale_group_size` columns, or per row. A weight is (code - 2^(bits - 1)) · scale. The reference is
`HummingWeightSchema` in https://github.com/inclusionAI/humming, whose shorter names for keys are read too.
"""

from __future__ import annotations

import re
from collections.abc import Container

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.four_level_words import word_tensor
from tritgguf.converter.checkpoint.packed_integers import WORD_BITS
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.scaled_codes import Words, scales_per_block
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError

METHOD = "humming"
SCALE, ZEROS = "_scale", "zero_point"
DTYPES = re.compile(r"u?int([248])")
DTYPE_KEYS = ("b_dtype", "weight_dtype", "dtype")
GROUP_KEYS = ("weight_scale_group_size", "group_size")
TYPE_KEYS = ("weight_scale_type", "scale_type")
# What these ask for changes the weights, or the rows and columns that share a scale.
REFUSED_FLAGS = ("has_zero_point", "is_fp_zero_point")
REFUSED_SIZES = ("weight_scale_group_size_n", "group_size_n")


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names this packing."""
    return quantization(config).get("quant_method") == METHOD


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as FourLevelTensor or ScaledTensor."""
    said = quantization(config)
    bits, group = _bits(said), _group(said)
    packed = {name for name, tensor in stored.items() if tensor.dtype == "I32" and name.endswith(".weight")}
    if not packed:
        raise SourceError(f"{said.name('quant_method')} is {METHOD}, but no weight is I32: fetch the checkpoint again")
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        if name in packed:
            tensors[name] = _packed_tensor(tensor, stored, bits, group)
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in packed):
            tensors[name] = tensor
    return tensors


def _bits(said: Settings) -> int:
    _refuse_variants(said)
    key = next((key for key in DTYPE_KEYS if said.has(key)), DTYPE_KEYS[0])
    dtype = said.text(key)
    found = DTYPES.fullmatch(dtype or "")
    if found is None:
        raise UnsupportedError(f"{said.name(key)} {shown(dtype)} isn't read; expected uint2, uint4 or uint8")
    return int(found[1])


def _group(said: Settings) -> int:
    """Return the number of columns that share a scale; 0 where a row does."""
    key = next((key for key in GROUP_KEYS if said.has(key)), GROUP_KEYS[0])
    group = said.integer(key, 0, least=0)
    type_key = next((key for key in TYPE_KEYS if said.has(key)), TYPE_KEYS[0])
    wanted = "group" if group else "channel"
    if said.text(type_key) not in (None, wanted):
        raise UnsupportedError(f"{said.name(type_key)} {shown(said[type_key])} isn't read; expected {wanted}")
    return group


def _refuse_variants(said: Settings) -> None:
    for key in REFUSED_FLAGS:
        if said.flag(key):
            raise UnsupportedError(
                f"{said.name(key)} is true: weights with zero points aren't read; give a checkpoint without, or the "
                "model in the compressed-tensors format"
            )
    for key in REFUSED_SIZES:
        if said.integer(key, 0, least=0) > 1:
            raise UnsupportedError(f"{said.name(key)} {said[key]} isn't read; expected 0 or 1")
    if said.get("dynamic"):
        raise UnsupportedError(f"{said.name('dynamic')} isn't read: give a checkpoint with one setting for all layers")


def _packed_tensor(packed: StoredTensor, stored: StoredTensors, bits: int, group: int) -> SourceTensor:
    name = packed.name
    if len(packed.shape) != 2 or 0 in packed.shape:
        raise SourceError(f"{name} has the shape {packed.shape}; expected packed rows and columns")
    if f"{name.removesuffix('weight')}{ZEROS}" in stored:
        raise UnsupportedError(f"{name} has zero points, which aren't read: give a checkpoint without")
    if name + SCALE not in stored:
        raise SourceError(f"{name} is packed, but the checkpoint has no {name}{SCALE}: fetch it again")
    shape = (packed.shape[0], packed.shape[1] * WORD_BITS // bits)
    if group and shape[1] % group:
        raise SourceError(f"{name} has rows of {shape[1]} weights, no multiple of the group size {group}")
    scales = scales_per_block(stored[name + SCALE], shape, (1, group or shape[1]))
    return word_tensor(name, PACKING.name, Words(packed, bits, shape[1]), scales, "F32")


PACKING = Packing("humming", recognizes, read)
