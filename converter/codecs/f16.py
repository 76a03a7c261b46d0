"""F16: IEEE half precision, rounded to nearest even; embeddings, the output layer and the reference conversion."""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.codec import FloatCodec
from tritgguf.converter.tensors import ByteArray, Float32Array


class F16(FloatCodec):
    name = "f16"
    ggml_type = GGMLQuantizationType.F16
    file_type = LlamaFileType.MOSTLY_F16
    holds_dtypes = ("F16",)
    block = 1
    block_bytes = 2

    def encode(self, values: Float32Array) -> ByteArray:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)

    def decode(self, stored: ByteArray) -> Float32Array:
        return stored.view("<f2").astype(np.float32)


CODEC = F16()
