"""The ternary codecs against libggml, byte for byte, and as a round trip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import libggml
from tritgguf.converter import TensorError
from tritgguf.converter.codec import TernaryCodec, codec_named, codecs
from tritgguf.converter.tensors import CodedRows

TERNARY = [codec for codec in codecs().values() if isinstance(codec, TernaryCodec)]
each_codec = pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)


def random_rows(seed: int, n_rows: int, n_blocks: int, block: int = 256) -> CodedRows:
    """Ternary rows in which every block holds a non-zero value and every scale is a positive fp16 value."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_rows, n_blocks * block)).astype(np.int8)
    codes[:, ::block] = 1
    scales = np.exp(rng.uniform(-9, 9, (n_rows, n_blocks))).astype(np.float16).astype(np.float32)
    return CodedRows(codes, scales, block)


def test_every_ternary_type_of_the_issue_is_here() -> None:
    assert {codec.name for codec in TERNARY} == {"tq1_0", "tq2_0"}


@each_codec
@pytest.mark.parametrize("seed", range(5))
def test_pack_equals_ggml_quantize_of_the_same_ternary_values(codec: TernaryCodec, seed: int) -> None:
    rows = random_rows(seed, 7, 5)
    ours = codec.pack(rows)
    theirs = libggml.quantize(rows.dequantize(), codec.ggml_type)
    np.testing.assert_array_equal(ours, theirs, err_msg=f"seed {seed}")


@each_codec
@pytest.mark.parametrize("seed", range(5))
def test_unpack_equals_ggml_dequantize_of_random_valid_bytes(codec: TernaryCodec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6 * 4, codec.block_bytes), dtype=np.uint8)
    if codec.name == "tq2_0":
        digits = rng.integers(0, 3, (len(blocks), 64, 4), dtype=np.uint8)  # 3 is the one invalid code
        blocks[:, :64] = (digits << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2, dtype=np.uint8)
    scales = rng.standard_normal(len(blocks)).astype("<f2")
    blocks[:, -2:] = scales.view(np.uint8).reshape(-1, 2)
    stored = blocks.reshape(6, -1)
    np.testing.assert_array_equal(codec.unpack(stored).dequantize(), libggml.dequantize(stored, codec.ggml_type))


@each_codec
def test_every_packed_byte_means_what_ggml_reads(codec: TernaryCodec) -> None:
    """All 256 byte values at every position of a block (TQ2_0: those without the code 3)."""
    for byte in range(256):
        if codec.name == "tq2_0" and any(byte >> shift & 3 == 3 for shift in (0, 2, 4, 6)):
            continue
        stored = np.full((1, codec.block_bytes), byte, np.uint8)
        stored[:, -2:] = np.float16(0.25).reshape(1).view(np.uint8)
        np.testing.assert_array_equal(codec.unpack(stored).dequantize(), libggml.dequantize(stored, codec.ggml_type))


@each_codec
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_rows=st.integers(1, 4), n_blocks=st.integers(1, 5))
def test_unpack_of_pack_is_the_identity(codec: TernaryCodec, seed: int, n_rows: int, n_blocks: int) -> None:
    rows = random_rows(seed, n_rows, n_blocks)
    back = codec.unpack(codec.pack(rows))
    np.testing.assert_array_equal(back.codes, rows.codes)
    np.testing.assert_array_equal(back.scales, rows.scales)
    assert back.group == rows.group


@each_codec
def test_one_scale_per_row_is_repeated_in_every_block(codec: TernaryCodec) -> None:
    codes = np.random.default_rng(3).integers(-1, 2, (4, 1024)).astype(np.int8)
    per_row = CodedRows(codes, np.array([[0.5], [1.0], [2.0], [0.125]], np.float32), 1024)
    per_block = CodedRows(codes, np.repeat(per_row.scales, 4, axis=1), 256)
    np.testing.assert_array_equal(codec.pack(per_row), codec.pack(per_block))


@each_codec
def test_all_zero_blocks_stay_zero_and_finite(codec: TernaryCodec) -> None:
    zeros = CodedRows(np.zeros((2, 512), np.int8), np.zeros((2, 2), np.float32), 256)
    stored = codec.pack(zeros)
    np.testing.assert_array_equal(stored, libggml.quantize(np.zeros((2, 512), np.float32), codec.ggml_type))
    assert not libggml.dequantize(stored, codec.ggml_type).any()


@each_codec
def test_a_scale_beyond_fp16_is_refused(codec: TernaryCodec) -> None:
    rows = CodedRows(np.ones((1, 256), np.int8), np.array([[1e5]], np.float32), 256)
    with pytest.raises(TensorError, match="65504"):
        codec.pack(rows)


def test_the_invalid_code_of_tq2_0_is_refused() -> None:
    stored = np.zeros((1, 66), np.uint8)
    stored[0, 10] = 0b11
    with pytest.raises(TensorError, match="code 3"):
        codec_named("tq2_0").unpack(stored)  # type: ignore[attr-defined]


@pytest.mark.parametrize("codec", codecs().values(), ids=lambda codec: codec.name)
def test_block_sizes_are_gguf_s(codec) -> None:
    from gguf import GGML_QUANT_SIZES

    assert GGML_QUANT_SIZES[codec.ggml_type] == (codec.block, codec.block_bytes)
