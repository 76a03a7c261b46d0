"""Any floats in a type for which this package only has an encoder of grids: quantized as ggml's reference does.

The package gguf has these quantizers in numpy. ggml's own are in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
"""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.tensors import ByteArray, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import FloatCodec

SMALLEST = 1e-36  # the inverse of a smaller scale overflows float32; fp16 rounds such scales to 0 anyway


class GgmlCodec(FloatCodec):
    """One type with a scale per block; values of a magnitude of `limit` or more would make the scale infinite."""

    def __init__(self, ggml_type: GGMLQuantizationType, file_type: LlamaFileType, limit: float) -> None:
        self.name, self.ggml_type, self.file_type = ggml_type.name.lower(), ggml_type, file_type
        self.block, self.block_bytes = GGML_QUANT_SIZES[ggml_type]
        self.limit = limit

    def encode(self, values: Float32Array) -> ByteArray:
        blocks = values.reshape(-1, self.block)
        largest = np.abs(blocks).max(axis=1, keepdims=True, initial=0)
        if not (largest < self.limit).all():
            raise TensorError(
                f"a value is {largest.max():g}, but {self.name} ends at {self.limit:.3g}: store this tensor as f32"
            )
        if (largest < SMALLEST).any():
            values = np.where(largest < SMALLEST, np.float32(0), blocks).reshape(values.shape)
        return quants.quantize(values, self.ggml_type)

    def decode(self, stored: ByteArray) -> Float32Array:
        return quants.dequantize(stored, self.ggml_type)
