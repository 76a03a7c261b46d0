"""F32: float32 values, unchanged; for norms and biases."""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.tensors import ByteArray, Float32Array
from tritgguf.converter.quant.codec import EVERYWHERE, FloatCodec


class F32(FloatCodec):
    name = "f32"
    ggml_type = GGMLQuantizationType.F32
    file_type = LlamaFileType.ALL_F32
    holds_dtypes = ("F32", "F16", "BF16")
    block = 1
    block_bytes = 4
    runs_on = EVERYWHERE

    def encode(self, values: Float32Array) -> ByteArray:
        return np.ascontiguousarray(values, dtype="<f4").view(np.uint8)

    def decode(self, stored: ByteArray) -> Float32Array:
        return stored.view("<f4").astype(np.float32)


CODEC = F32()
