"""F16 and F32 against ggml's conversion."""

import ctypes

import numpy as np
import pytest

from tests.oracles import libggml
from tritgguf.converter.codec import FloatCodec, codec_named


def float_codec(name: str) -> FloatCodec:
    codec = codec_named(name)
    assert isinstance(codec, FloatCodec)
    return codec


def test_f16_equals_ggml_for_values_of_every_size() -> None:
    rng = np.random.default_rng(11)
    values = (rng.standard_normal((9, 1000)) * 10.0 ** rng.integers(-9, 5, (9, 1000))).astype(np.float32)
    values = np.clip(values, -65504, 65504)
    theirs = np.empty(values.shape, np.uint16)
    ggml = libggml.library()
    ggml.ggml_fp32_to_fp16_row.argtypes = (libggml.FLOATS, ctypes.c_void_p, ctypes.c_int64)
    ggml.ggml_fp32_to_fp16_row(values.ctypes.data_as(libggml.FLOATS), theirs.ctypes.data, values.size)
    np.testing.assert_array_equal(float_codec("f16").encode(values), theirs.view(np.uint8))


@pytest.mark.parametrize("name", ["f16", "f32"])
def test_values_of_the_type_come_back_unchanged(name: str) -> None:
    codec = float_codec(name)
    values = np.random.default_rng(12).standard_normal((5, 96)).astype(np.float16).astype(np.float32)
    stored = codec.encode(values)
    assert stored.shape == (5, codec.row_bytes(96))
    np.testing.assert_array_equal(codec.decode(stored), values)
