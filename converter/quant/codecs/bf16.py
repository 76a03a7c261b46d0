"""BF16: the upper 16 bits of a float32, rounded to nearest even; stores bfloat16 checkpoints exactly."""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.tensors import ByteArray, Float32Array
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import EVERYWHERE, FloatCodec


class BF16(FloatCodec):
    name = "bf16"
    ggml_type = GGMLQuantizationType.BF16
    file_type = LlamaFileType.MOSTLY_BF16
    holds_dtypes = ("BF16",)
    block = 1
    block_bytes = 2
    runs_on = EVERYWHERE

    def encode(self, values: Float32Array) -> ByteArray:
        stored: ByteArray = quants.quantize(values, self.ggml_type)
        infinite = stored.view("<u2") & 0x7FFF == 0x7F80
        if infinite.any() and np.isfinite(values[infinite]).any():
            raise TensorError("a value rounds to infinity, since bf16 ends at 3.39e38: store this tensor as f32")
        return stored

    def decode(self, stored: ByteArray) -> Float32Array:
        return quants.dequantize(stored, self.ggml_type)


CODEC = BF16()
