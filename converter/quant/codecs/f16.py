"""F16: IEEE half precision, rounded to nearest even; for embeddings and the output layer by default."""

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tritgguf.converter.core.floats import LARGEST_F16, narrowed, widened
from tritgguf.converter.core.tensors import ByteArray, Float32Array, Floats
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codec import EVERYWHERE, FloatCodec


class F16(FloatCodec):
    name = "f16"
    ggml_type = GGMLQuantizationType.F16
    file_type = LlamaFileType.MOSTLY_F16
    holds_dtypes = ("F16", "F8_E4M3", "F8_E5M2")
    block = 1
    block_bytes = 2
    runs_on = EVERYWHERE

    def encode_stored(self, floats: Floats) -> ByteArray | None:
        words, largest = narrowed(floats)
        return words.view(np.uint8) if largest <= LARGEST_F16 else None

    def encode(self, values: Float32Array) -> ByteArray:
        words, largest = narrowed(Floats.of(values))
        if largest > LARGEST_F16:
            raise TensorError(f"a value is {largest:g}, but f16 ends at 65504: store this tensor as bf16 or f32")
        return words.view(np.uint8)

    def decode(self, stored: ByteArray) -> Float32Array:
        return widened(Floats(np.ascontiguousarray(stored).view("<u2"), "F16"))


CODEC = F16()
