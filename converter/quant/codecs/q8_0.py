"""Q8_0: 32 values as one fp16 scale and signed bytes (8.5 bits per weight); for embeddings and output layers too.

scale = largest magnitude / 127, code = round(value / scale), halves away from zero, as `quantize_row_q8_0_ref` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
"""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.tensors import ByteArray, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import EVERYWHERE, FloatCodec

LARGEST_SCALE = 65520  # fp16 rounds this and larger scales to infinity
SMALLEST = 1e-36  # smaller magnitudes overflow float32 in 1 / scale; fp16 rounds such scales to 0 anyway


class Q80(FloatCodec):
    name = "q8_0"
    ggml_type = GGMLQuantizationType.Q8_0
    file_type = LlamaFileType.MOSTLY_Q8_0
    block = 32
    block_bytes = 34
    runs_on = EVERYWHERE

    def encode(self, values: Float32Array) -> ByteArray:
        blocks = values.reshape(-1, self.block)
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        if not (largest / 127 < LARGEST_SCALE).all():
            raise TensorError(f"a value is {largest.max():g}, but q8_0 ends at 8.32e6: store this tensor as f32")
        if (largest < SMALLEST).any():
            values = np.where(largest < SMALLEST, np.float32(0), blocks).reshape(values.shape)
        return quants.quantize(values, self.ggml_type)

    def decode(self, stored: ByteArray) -> Float32Array:
        return quants.dequantize(stored, self.ggml_type)


CODEC = Q80()
