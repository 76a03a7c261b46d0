"""The float codecs against ggml's conversions, byte for byte; Q6_K, which is quantized better here, by its error."""

import ctypes

import numpy as np
import pytest

from tests.oracles import libggml
from tritgguf.converter import TensorError
from tritgguf.converter.quant.codec import FloatCodec, codec_named

INPUTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "weights": lambda rng, shape: 0.02 * rng.standard_normal(shape),
    "small weights": lambda rng, shape: 0.002 * rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "one sign": lambda rng, shape: rng.gamma(2, 0.05, shape),
    "sizes that differ by sub-block": lambda rng, shape: (
        rng.standard_normal(shape) * np.exp(rng.normal(size=(shape[0], shape[1] // 16))).repeat(16, axis=1)
    ),
    "ternary": lambda rng, shape: 0.037 * rng.integers(-1, 2, shape),
    "mostly zero blocks": lambda rng, shape: (
        rng.standard_normal(shape) * (rng.random((shape[0], shape[1] // 16)) < 0.3).repeat(16, axis=1)
    ),
}
each_input = pytest.mark.parametrize("kind", INPUTS)


def float_codec(name: str) -> FloatCodec:
    codec = codec_named(name)
    assert isinstance(codec, FloatCodec)
    return codec


def inputs(kind: str, seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(INPUTS[kind](np.random.default_rng(seed), shape)).astype(np.float32)


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def squared_error(values: np.ndarray, stored_values: np.ndarray) -> float:
    return float(np.square(stored_values.astype(np.float64) - values).sum())


def test_f16_equals_ggml_for_values_of_every_size() -> None:
    rng = np.random.default_rng(11)
    values = rng.standard_normal((9, 1000)) * 10.0 ** rng.integers(-9, 5, (9, 1000))
    values = np.clip(values, -65504, 65504).astype(np.float32)
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


@pytest.mark.parametrize("name", ["bf16", "q8_0", "q6_k", "q4_k", "nvfp4"])
def test_rows_have_the_planned_size_and_the_values_stay_as_they_are(name: str) -> None:
    codec = float_codec(name)
    values = inputs("normal", 13, (3, 1024))[:, ::2]
    before = values.copy()
    stored = codec.encode(values)
    assert stored.dtype == np.uint8
    assert stored.shape == (3, codec.row_bytes(512))
    np.testing.assert_array_equal(values, before)
    assert codec.decode(stored).shape == (3, 512)
    np.testing.assert_allclose(codec.decode(stored), values, atol={"q4_k": 0.3, "nvfp4": 0.6}.get(name, 0.1))
    for row in range(3):
        np.testing.assert_array_equal(codec.encode(values[row : row + 1])[0], stored[row])


def test_bf16_equals_ggml_at_every_rounding() -> None:
    """Every upper half but the two that may round to infinity, with lower halves around the tie; NaN and Inf too."""
    upper = np.setdiff1d(np.arange(0x10000), [0x7F7F, 0xFF7F]).astype(np.uint32)[:, None] << 16
    values = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).view(np.float32)
    theirs = libggml.quantize(values, float_codec("bf16").ggml_type)
    np.testing.assert_array_equal(float_codec("bf16").encode(values), theirs)


def test_every_bf16_is_read_as_ggml_reads_it_and_kept() -> None:
    codec = float_codec("bf16")
    stored = np.arange(0x10000, dtype="<u2").reshape(256, 256).view(np.uint8)
    theirs = np.empty((256, 256), np.float32)
    ggml = libggml.library()
    ggml.ggml_bf16_to_fp32_row.argtypes = (ctypes.c_void_p, libggml.FLOATS, ctypes.c_int64)
    ggml.ggml_bf16_to_fp32_row(stored.ctypes.data, theirs.ctypes.data_as(libggml.FLOATS), theirs.size)
    ours = codec.decode(stored)
    assert_same_bits(ours, theirs)
    finite = np.isfinite(ours)
    np.testing.assert_array_equal(codec.encode(ours).view("<u2")[finite], stored.view("<u2")[finite])
    assert np.isnan(codec.decode(codec.encode(ours))[np.isnan(ours)]).all()


@pytest.mark.parametrize("seed", range(3))
@each_input
def test_q8_0_equals_ggml(kind: str, seed: int) -> None:
    codec = float_codec("q8_0")
    values = inputs(kind, seed, (16, 1024))
    np.testing.assert_array_equal(codec.encode(values), libggml.quantize(values, codec.ggml_type))


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-20, 1e-34, 1e6])
def test_q8_0_equals_ggml_for_values_of_every_size(size: float) -> None:
    codec = float_codec("q8_0")
    values = inputs("normal", 17, (4, 1024)) * np.float32(size)
    np.testing.assert_array_equal(codec.encode(values), libggml.quantize(values, codec.ggml_type))


def test_q8_0_rounds_halves_as_ggml_does() -> None:
    codec = float_codec("q8_0")
    values = np.arange(-127, 127.5, 0.5, dtype=np.float32)
    values = np.concatenate([values, np.zeros(3, np.float32)]).reshape(-1, 32)
    values[:, 0] = 127
    np.testing.assert_array_equal(codec.encode(values), libggml.quantize(values, codec.ggml_type))


@pytest.mark.parametrize("name", ["q8_0", "q6_k"])
@pytest.mark.parametrize("seed", range(3))
def test_decode_equals_ggml_for_random_bytes(name: str, seed: int) -> None:
    codec, rng = float_codec(name), np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6 * 4, codec.block_bytes), dtype=np.uint8)
    scale = slice(0, 2) if name == "q8_0" else slice(208, 210)
    blocks[:, scale] = rng.standard_normal((len(blocks), 1)).astype("<f2").view(np.uint8)
    stored = blocks.reshape(6, -1)
    assert_same_bits(codec.decode(stored), libggml.dequantize(stored, codec.ggml_type))


@each_input
def test_q6_k_is_nearer_to_the_values_than_ggml_s_own(kind: str) -> None:
    codec = float_codec("q6_k")
    values = inputs(kind, 14, (64, 2048))
    ours = squared_error(values, libggml.dequantize(codec.encode(values), codec.ggml_type))
    theirs = squared_error(values, libggml.dequantize(libggml.quantize(values, codec.ggml_type), codec.ggml_type))
    assert ours < (1.0 if kind == "ternary" else 0.95) * theirs


def test_q6_k_keeps_weights_so_small_that_ggml_s_scale_is_a_subnormal_or_zero() -> None:
    codec = float_codec("q6_k")
    for size in (1e-3, 1e-4, 1e-5):
        values = inputs("normal", 15, (4, 512)) * np.float32(size)
        stored_values = libggml.dequantize(codec.encode(values), codec.ggml_type)
        assert squared_error(values, stored_values) < 0.003 * squared_error(values, np.zeros_like(values)), size


@pytest.mark.parametrize("name", ["q8_0", "q6_k"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-37, -1e-30, 1e-12])
def test_values_far_below_fp16_become_zero(name: str, value: float) -> None:
    codec = float_codec(name)
    values = np.full((1, 512), value, np.float32)
    values[0, ::2] *= -1
    values[0, :256] = values[0, ::5] = 0
    stored = codec.encode(values)
    assert not libggml.dequantize(stored, codec.ggml_type).any()
    values[0, 300] = 1.0  # beside a value of usual size, too
    assert abs(libggml.dequantize(codec.encode(values), codec.ggml_type)[0, 300] - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "fits", "beyond", "message"),
    [
        ("bf16", 3.38e38, 3.4e38, "bf16 ends at 3.39e38"),
        ("q8_0", 8.31e6, 8.33e6, "q8_0 ends at 8.32e6"),
        ("q6_k", 2.2e8, 2.9e8, "q6_k ends near 2.3e8"),
        ("q6_k", 2.2e8, 3e38, "q6_k ends near 2.3e8"),
        ("q3_k", 4e6, 9e6, "q3_k ends near 6e6"),
        ("q4_k", 4e6, 4.2e6, "q4_k ends near 4e6"),
        ("nvfp4", 2688, 2870, "nvfp4 ends at 2688"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_values_beyond_the_type_are_refused(name: str, fits: float, beyond: float, message: str, sign: int) -> None:
    codec = float_codec(name)
    values = np.zeros((2, 512), np.float32)
    values[1, 77] = sign * fits
    assert np.isclose(codec.decode(codec.encode(values))[1, 77], sign * fits, rtol=0.01)
    values[1, 78] = sign * beyond
    with pytest.raises(TensorError, match=message):
        codec.encode(values)


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q3_k", "q4_k", "nvfp4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_by_types_with_scales(name: str, value: float) -> None:
    values = inputs("normal", 16, (2, 512))
    values[1, 300] = value
    with pytest.raises(TensorError, match=r"a value is (nan|inf)"):
        float_codec(name).encode(values)
