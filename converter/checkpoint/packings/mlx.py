"""MLX's affine packing: integers along the input, with a scale and a bias per group: weight = q · scale + bias.

`X.weight` is U32 (out, in · bits / 32), `X.scales` and `X.biases` are (out, in / group). config.json's `quantization`
(or `quantization_config`) gives `bits` and `group_size`, and the same by a module's name where that has others. The
reference is `mlx.core.dequantize`,
https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.dequantize.html. Two-bit groups whose bias is
-1 or -2 times their scale are codes, as in Bonsai and in what AutoRound exports.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.checkpoint.config_json import FILE, ConfigJson
from tritgguf.converter.checkpoint.packed_integers import WORD_BITS, IntegerTensor, Part
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.packings import auto_round
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.core.tensors import Codes, Float32Array, RowIndices, SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError

WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"
PACKED_DTYPE = "U32"
BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class MlxTensor(IntegerTensor):
    """One packed matrix."""

    biases: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.packed, self.scales, self.biases

    def weights(self, groups: Float32Array, rows: slice | RowIndices) -> Float32Array:
        groups *= self.scales.floats(rows)[..., None]
        groups += self.biases.floats(rows)[..., None]
        return groups

    def four_level_zeros(self, rows: slice | RowIndices) -> Codes | None:
        scales, biases = self.scales.floats(rows), self.biases.floats(rows)
        one = biases == -scales
        fits = one | (biases == np.float32(-2) * scales)
        return np.where(one, np.int8(1), np.int8(2)) if fits.all() else None


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json has MLX's settings: no quant_method, or AutoRound's with its MLX format."""
    said = quantization(config)
    if said.get("quant_method") is not None:
        return said.get("quant_method") in auto_round.METHODS and said.get("packing_format") in auto_round.MLX_FORMATS
    return "bits" in _settings(config)


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as MlxTensor."""
    said = _settings(config)
    auto_round.require_integers(quantization(config))
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        module, dot, last = name.rpartition(".")
        if dot + last in (SCALES, BIASES):
            if module + WEIGHT not in stored:
                raise SourceError(f"the checkpoint holds {name}, but no {module}{WEIGHT}: fetch it again")
        elif dot + last == WEIGHT and (tensor.dtype == PACKED_DTYPE or module + SCALES in stored):
            tensors[name] = _packed(module, stored, said)
        else:
            tensors[name] = tensor
    return tensors


def _settings(config: ConfigJson) -> Settings:
    return Settings(FILE, config).object("quantization") or quantization(config)


def _packed(module: str, stored: StoredTensors, said: Settings) -> MlxTensor:
    own = said.object(module) if isinstance(said.get(module), dict) else said
    if said.get(module) is False:
        raise SourceError(f"{said.name(module)} is false, but {module}{WEIGHT} is packed: the checkpoint is damaged")
    mode = own.get("mode", said.get("mode", "affine"))
    if mode != "affine":
        raise UnsupportedError(f"{own.name('mode')} is {shown(mode)}, which isn't read; expected affine")
    bits = (own if own.has("bits") else said).integer("bits")
    if bits not in BITS:
        raise UnsupportedError(f"{own.name('bits')} is {bits}; read are {', '.join(map(str, BITS))}")
    group = (own if own.has("group_size") else said).integer("group_size")
    weight = stored[module + WEIGHT]
    if weight.dtype != PACKED_DTYPE:
        raise SourceError(f"{weight.name} is {weight.dtype}; expected {PACKED_DTYPE}: the checkpoint is damaged")
    scales, biases = (_beside(module, suffix, stored) for suffix in (SCALES, BIASES))
    if not _fits(weight.shape, scales.shape, biases.shape, bits, group):
        raise SourceError(
            f"{weight.name} {weight.shape}, scales {scales.shape} and biases {biases.shape} don't fit each other "
            f"at {bits} bits in groups of {group}, which config.json gives"
        )
    dtype = f"{bits}-bit {PACKING.name}"
    shape = (weight.shape[0], scales.shape[1] * group)
    return MlxTensor(weight.name, dtype, shape, bits, group, Part(weight), Part(scales), Part(biases))


def _beside(module: str, suffix: str, stored: StoredTensors) -> StoredTensor:
    tensor = stored.get(module + suffix)
    if tensor is None:
        raise SourceError(f"{module}{WEIGHT} is packed, but the checkpoint has no {module}{suffix}: fetch it again")
    if tensor.dtype not in FLOAT_DTYPES:
        raise SourceError(f"{tensor.name} is {tensor.dtype}; expected floats: the checkpoint is damaged")
    return tensor


def _fits(weight: tuple[int, ...], scales: tuple[int, ...], biases: tuple[int, ...], bits: int, group: int) -> bool:
    if len(weight) != 2 or len(scales) != 2 or scales != biases or 0 in (*weight, *scales):
        return False
    return weight[0] == scales[0] and weight[1] * WORD_BITS == scales[1] * group * bits


PACKING = Packing("MLX", recognizes, read)
