"""BitNet latent weights: floats that the model ternarizes each time it computes.

trit = clip(round(w / s), -1, 1), weight = trit * s, with s = mean|w| over the whole tensor in float32, at least 1e-5
(BitNet b1.58, https://arxiv.org/abs/2402.17764). This is the rule of transformers' `WeightQuant` (quantization_mode
online) and of 1bitLLM's models, whose config.json has no quantization_config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tritgguf.converter.checkpoint.config_json import ConfigJson, named_classes
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.core.patterns import require_quick
from tritgguf.converter.core.tensors import (
    CodedRows,
    CodedTensor,
    Float32Array,
    RowIndices,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.errors import SourceError, UnsupportedError

LEAST_SCALE = np.float32(1e-5)
EXPERTS = ".experts."  # in the names of the tensors that hold all matrices of a layer's experts


@dataclass(frozen=True)
class LatentTensor(CodedTensor):
    """Latent weights as their model computes with them: ternary, with one scale."""

    @cached_property
    def inverse_scale(self) -> float:
        """1 / s, as the reference computes it; the sum is taken in float64, row by row."""
        chunks = (np.abs(self.stored.read(rows)).sum(axis=1, dtype=np.float64) for rows in row_chunks(self.shape))
        total = math.fsum(row for chunk in chunks for row in chunk)
        mean = np.float32(total / math.prod(self.shape))
        return float(np.float32(1.0 / float(max(mean, LEAST_SCALE))))

    def scales(self, rows: slice) -> Float32Array:
        n_rows = len(range(self.shape[0])[rows])
        return np.full((n_rows, 1), np.float32(1.0 / self.inverse_scale), np.float32)

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        values = self.stored.read(rows)
        codes = np.clip(np.rint(values * np.float32(self.inverse_scale)), -1, 1).astype(np.int8)
        return CodedRows(codes, np.full((len(values), 1), np.float32(1.0 / self.inverse_scale), np.float32), self.group)


def ternarized(tensor: SourceTensor) -> LatentTensor:
    """Return latent weights as their model computes with them."""
    return LatentTensor(tensor.name, PACKING.name, tensor.shape, tensor.shape[-1], tensor)


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json says online quantization, or there is no quantization_config and the class is 1bitLLM's."""
    if any(tensor.dtype == "U8" for tensor in stored.values()):
        return False
    quantized = quantization(config)
    if quantized:
        return quantized.get("quant_method") == "bitnet" and quantized.text("quantization_mode") == "online"
    return "BitnetForCausalLM" in named_classes(config)


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors; linear ones, each on its own, are ternarized unless modules_to_not_convert lists them.

    Raises UnsupportedError for a tensor of experts that holds all their matrices.
    """
    kept = quantization(config).texts("modules_to_not_convert") or []
    require_quick("config.json: modules_to_not_convert", kept)
    if stacked := next((name for name, tensor in stored.items() if EXPERTS in name and len(tensor.shape) > 2), None):
        raise UnsupportedError(
            f"{stacked} holds the matrices of all experts, and it isn't known whether the model rounds those to three "
            "levels: expected a tensor for each expert, as save_pretrained(save_original_format=True) writes"
        )
    return {
        name: ternarized(tensor) if name in linear and not _kept(name, kept) else tensor
        for name, tensor in stored.items()
    }


def _kept(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module is left as plain floats, by the rule of transformers' `should_convert_module`.

    A pattern is the end of the module's name, or a regular expression for its start that ends before a dot.
    """
    module = name.removesuffix(".weight")
    try:
        return any(module.endswith(p) or re.match(rf"(?:{p})(?:(?<=\.)|(?=\.|$))", module) for p in patterns)
    except re.error as error:
        raise SourceError(f"config.json: modules_to_not_convert holds an invalid pattern: {error}") from error


PACKING = Packing("bitnet latent weights", recognizes, read)
