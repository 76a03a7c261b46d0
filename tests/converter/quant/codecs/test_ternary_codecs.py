"""The ternary codecs against libggml, byte for byte or bit for bit, and as a round trip."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import libggml
from tritgguf.converter import TensorError
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.quant.codec import TernaryCodec, codec_named, codecs
from tritgguf.converter.quant.codecs.q2_k import CODEC as Q2_K
from tritgguf.converter.quant.codecs.q2_k import AffineRows

TERNARY = [codec for codec in codecs().values() if isinstance(codec, TernaryCodec)]
each_codec = pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)

# ggml's quantizers write these very bytes for ternary values. Its Q4_0 takes -8 for the largest value, and its Q2_K
# searches sub-scales: other bytes, and in general other values.
SAME_BYTES_AS_GGML = {"tq1_0", "tq2_0", "q2_0"}


class Layout(NamedTuple):
    """Where the parts of a block lie, and which bytes its codes may be."""

    codes: slice
    scales: tuple[slice, ...]
    valid: list[int]
    ones: slice = slice(0, 0)


TWO_BIT_CODES = [byte for byte in range(256) if all(byte >> shift & 3 != 3 for shift in (0, 2, 4, 6))]
FOUR_BIT_CODES = [byte for byte in range(256) if {byte & 15, byte >> 4} <= {7, 8, 9}]
LAYOUTS = {
    "tq1_0": Layout(slice(0, 52), (slice(52, 54),), list(range(256))),
    "tq2_0": Layout(slice(0, 64), (slice(64, 66),), TWO_BIT_CODES),
    "q2_0": Layout(slice(2, 18), (slice(0, 2),), TWO_BIT_CODES),
    "q2_k": Layout(slice(16, 80), (slice(80, 82), slice(82, 84)), TWO_BIT_CODES, ones=slice(0, 16)),
    "q4_0": Layout(slice(2, 18), (slice(0, 2),), FOUR_BIT_CODES),
}


def random_rows(seed: int, n_rows: int, n_blocks: int, block: int = 256) -> CodedRows:
    """Ternary rows in which every block holds a non-zero value and every scale is a positive fp16 value."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_rows, n_blocks * block)).astype(np.int8)
    codes[:, ::32] = 1
    scales = np.exp(rng.uniform(-16, 11, (n_rows, n_blocks))).astype(np.float16).astype(np.float32)
    return CodedRows(codes, scales, block)


def blocks_of(codec: TernaryCodec, code_bytes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks of those code bytes, (n_blocks, n_code_bytes), and scales, (n_blocks,)."""
    layout = LAYOUTS[codec.name]
    blocks = np.zeros((len(scales), codec.block_bytes), np.uint8)
    blocks[:, layout.codes] = code_bytes
    blocks[:, layout.ones] = 0x11
    for part in layout.scales:
        blocks[:, part] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    return blocks


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray, message: str = "") -> None:
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32), err_msg=message)


def test_every_ternary_type_of_the_issues_is_here() -> None:
    assert {codec.name for codec in TERNARY} == {"tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0"}


@pytest.mark.parametrize("seed", range(3))
def test_q2_k_of_any_parts_is_what_ggml_reads(seed: int, monkeypatch) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 4, (5, 768), np.uint8)
    scales, minima = random.integers(0, 16, (2, 5, 48), np.uint8)
    d, dmin = (random.normal(0, 0.01, (2, 5, 3)) * (seed + 1)).astype(np.float16).astype(np.float32)
    stored = Q2_K.pack_affine(AffineRows(codes, scales, minima, d, dmin))
    steps, below = (np.repeat(np.repeat(unit, 16, 1) * part, 16, 1) for unit, part in ((d, scales), (dmin, minima)))
    found = libggml.dequantize(stored, Q2_K.ggml_type)
    assert_same_bits(found, steps * codes - below)
    assert_same_bits(Q2_K.decode(stored), found)
    monkeypatch.setenv("TRITGGUF_KERNELS", "numpy")
    assert_same_bits(Q2_K.decode(stored), found)


@pytest.mark.parametrize("name", sorted(SAME_BYTES_AS_GGML))
@pytest.mark.parametrize("seed", range(5))
def test_pack_equals_ggml_quantize_of_the_same_ternary_values(name: str, seed: int) -> None:
    codec = codec_named(name)
    assert isinstance(codec, TernaryCodec)
    rows = random_rows(seed, 7, 5)
    ours = codec.pack(rows)
    theirs = libggml.quantize(rows.dequantize(), codec.ggml_type)
    np.testing.assert_array_equal(ours, theirs, err_msg=f"seed {seed}")


@each_codec
@pytest.mark.parametrize("seed", range(5))
def test_ggml_reads_packed_rows_as_code_times_scale_to_the_bit(codec: TernaryCodec, seed: int) -> None:
    rows = random_rows(seed, 7, 5, codec.block)
    assert_same_bits(libggml.dequantize(codec.pack(rows), codec.ggml_type), rows.dequantize(), f"seed {seed}")


@each_codec
@pytest.mark.parametrize("seed", range(5))
def test_unpack_equals_ggml_dequantize_of_random_valid_bytes(codec: TernaryCodec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[codec.name]
    code_bytes = rng.choice(layout.valid, (6 * 4, layout.codes.stop - layout.codes.start))
    stored = blocks_of(codec, code_bytes, rng.standard_normal(6 * 4)).reshape(6, -1)
    np.testing.assert_array_equal(codec.unpack(stored).dequantize(), libggml.dequantize(stored, codec.ggml_type))


@each_codec
def test_every_packed_byte_means_what_ggml_reads(codec: TernaryCodec) -> None:
    """Every valid byte at every position of a block."""
    valid = np.array(LAYOUTS[codec.name].valid)[:, None]
    stored = blocks_of(codec, valid, np.full(len(valid), 0.25))
    np.testing.assert_array_equal(codec.unpack(stored).dequantize(), libggml.dequantize(stored, codec.ggml_type))


@each_codec
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 4),
    n_groups=st.integers(1, 5),
    blocks_per_group=st.integers(1, 4),
)
def test_unpack_of_pack_is_the_identity(
    codec: TernaryCodec, seed: int, n_rows: int, n_groups: int, blocks_per_group: int
) -> None:
    rows = random_rows(seed, n_rows, n_groups, codec.block * blocks_per_group)
    back = codec.unpack(codec.pack(rows))
    np.testing.assert_array_equal(back.codes, rows.codes)
    np.testing.assert_array_equal(back.scales, np.repeat(rows.scales, blocks_per_group, axis=1))
    assert back.group == codec.block


@each_codec
def test_one_scale_per_row_is_repeated_in_every_block(codec: TernaryCodec) -> None:
    codes = np.random.default_rng(3).integers(-1, 2, (4, 1024)).astype(np.int8)
    per_row = CodedRows(codes, np.array([[0.5], [1.0], [2.0], [0.125]], np.float32), 1024)
    per_block = CodedRows(codes, np.repeat(per_row.scales, 4, axis=1), 256)
    np.testing.assert_array_equal(codec.pack(per_row), codec.pack(per_block))


@each_codec
def test_a_group_narrower_than_a_block_is_no_scale_of_the_block(codec: TernaryCodec) -> None:
    narrow = codec.block // 2
    with pytest.raises(ValueError, match=f"groups of {narrow} columns"):
        codec.pack(random_rows(5, 2, 4, narrow))


@each_codec
def test_all_zero_blocks_stay_zero_and_finite(codec: TernaryCodec) -> None:
    zeros = CodedRows(np.zeros((2, 512), np.int8), np.zeros((2, 2), np.float32), 256)
    stored = codec.pack(zeros)
    assert_same_bits(libggml.dequantize(stored, codec.ggml_type), np.zeros((2, 512), np.float32))
    np.testing.assert_array_equal(codec.unpack(stored).codes, zeros.codes)
    if codec.name in SAME_BYTES_AS_GGML:
        np.testing.assert_array_equal(stored, libggml.quantize(np.zeros((2, 512), np.float32), codec.ggml_type))


@each_codec
def test_zeros_with_a_scale_are_zero(codec: TernaryCodec) -> None:
    zeros = CodedRows(np.zeros((1, 256), np.int8), np.full((1, 1), 0.3, np.float32), 256)
    assert_same_bits(libggml.dequantize(codec.pack(zeros), codec.ggml_type), np.zeros((1, 256), np.float32))


@each_codec
@pytest.mark.parametrize("scale", [2.0**-24, 2.0**-14 - 2.0**-24, 65504.0])
def test_the_ends_of_fp16_are_exact(codec: TernaryCodec, scale: float) -> None:
    rows = CodedRows(random_rows(4, 2, 1).codes, np.full((2, 1), scale, np.float32), 256)
    assert_same_bits(libggml.dequantize(codec.pack(rows), codec.ggml_type), rows.dequantize())


@each_codec
@pytest.mark.parametrize("scale", [65520.0, 1e5, np.inf, np.nan])
def test_a_scale_beyond_fp16_is_refused(codec: TernaryCodec, scale: float) -> None:
    rows = CodedRows(np.ones((1, 256), np.int8), np.array([[scale]], np.float32), 256)
    with pytest.raises(TensorError, match="65504"):
        codec.pack(rows)


@pytest.mark.parametrize("name", ["tq2_0", "q4_0"])
def test_every_byte_with_an_invalid_code_is_refused(name: str) -> None:
    codec, layout = codec_named(name), LAYOUTS[name]
    assert isinstance(codec, TernaryCodec)
    n_bytes = layout.codes.stop - layout.codes.start
    four_levels = {low | high << 4 for low in range(6, 11) for high in range(6, 11)} if name == "q4_0" else set()
    invalid = sorted(set(range(256)) - set(layout.valid) - four_levels)
    assert len(invalid) == (256 - 25 if name == "q4_0" else 256 - 81)
    for byte in invalid:
        stored = blocks_of(codec, np.full((3, n_bytes), layout.valid[0]), np.ones(3))
        stored[byte % 3, layout.codes.start + byte % n_bytes] = byte
        with pytest.raises(TensorError, match="code"):
            codec.unpack(stored)


@pytest.mark.parametrize("position", [*range(16), 80, 81, 82, 83])
def test_q2_k_with_other_sub_scales_or_minima_is_refused(position: int) -> None:
    codec = codec_named("q2_k")
    assert isinstance(codec, TernaryCodec)
    stored = codec.pack(random_rows(6, 2, 3))
    stored[1, 84 + position] ^= 0x10
    with pytest.raises(TensorError, match="neither three nor four levels"):
        codec.unpack(stored)


def test_q2_0_folds_a_negative_scale_into_the_codes() -> None:
    codec = codec_named("q2_0")
    assert isinstance(codec, TernaryCodec)
    rng = np.random.default_rng(8)
    scales = np.array([0.5, -0.5, -2.0, 3.0, -0.0, 0.25])
    stored = blocks_of(codec, rng.choice(TWO_BIT_CODES, (6, 16)), scales).reshape(2, -1)
    rows = codec.unpack(stored)
    np.testing.assert_array_equal(rows.scales, np.abs(scales).reshape(2, 3))
    np.testing.assert_array_equal(rows.dequantize(), libggml.dequantize(stored, codec.ggml_type))
    np.testing.assert_array_equal(libggml.dequantize(codec.pack(rows), codec.ggml_type), rows.dequantize())


def four_level_rows(seed: int, block: int) -> CodedRows:
    """Rows whose every block holds the code 2, with scales of both signs."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 3, (7, 512)).astype(np.int8)
    codes[:, ::32] = 2
    scales = rng.uniform(0.01, 1, (7, 512 // block)) * rng.choice([-1, 1], (7, 512 // block))
    return CodedRows(codes, scales.astype(np.float16).astype(np.float32), block)


@pytest.mark.parametrize("name", ["q2_0", "q2_k", "q4_0"])
@pytest.mark.parametrize("seed", range(3))
def test_four_levels_are_exact_for_ggml_and_come_back(name: str, seed: int) -> None:
    codec = codec_named(name)
    assert isinstance(codec, TernaryCodec)
    rows = four_level_rows(seed, codec.block)
    stored = codec.pack(rows)
    np.testing.assert_array_equal(libggml.dequantize(stored, codec.ggml_type), rows.dequantize())
    back = codec.unpack(stored)
    np.testing.assert_array_equal(back.codes, rows.codes)
    np.testing.assert_array_equal(back.scales, rows.scales)


@pytest.mark.parametrize("name", ["q2_0", "q2_k", "q4_0"])
def test_four_levels_in_groups_wider_than_blocks(name: str) -> None:
    codec = codec_named(name)
    assert isinstance(codec, TernaryCodec)
    rows = four_level_rows(3, 256)
    for group in (256, 512):
        wide = CodedRows(rows.codes, rows.scales[:, : 512 // group], group)
        np.testing.assert_array_equal(libggml.dequantize(codec.pack(wide), codec.ggml_type), wide.dequantize())


def test_all_bytes_of_q2_0_mean_what_ggml_reads() -> None:
    codec = codec_named("q2_0")
    assert isinstance(codec, TernaryCodec)
    rng = np.random.default_rng(9)
    stored = blocks_of(codec, rng.integers(0, 256, (40, 16)), rng.standard_normal(40)).reshape(5, -1)
    np.testing.assert_array_equal(codec.unpack(stored).dequantize(), libggml.dequantize(stored, codec.ggml_type))


@pytest.mark.parametrize("sign", [-1, 1])
def test_q4_0_reads_four_levels_with_either_sign(sign: int) -> None:
    codec = codec_named("q4_0")
    assert isinstance(codec, TernaryCodec)
    rng = np.random.default_rng(10)
    digits = (8 + sign * rng.integers(-1, 3, (6, 32))).astype(np.uint8)
    stored = blocks_of(codec, digits[:, :16] | digits[:, 16:] << 4, rng.standard_normal(6)).reshape(2, -1)
    np.testing.assert_array_equal(codec.unpack(stored).dequantize(), libggml.dequantize(stored, codec.ggml_type))


@pytest.mark.parametrize("codec", codecs().values(), ids=lambda codec: codec.name)
def test_block_sizes_and_names_are_ggml_s(codec) -> None:
    from gguf import GGML_QUANT_SIZES

    assert GGML_QUANT_SIZES[codec.ggml_type] == (codec.block, codec.block_bytes)
    assert libggml.type_facts(codec.ggml_type) == (codec.name, codec.block, codec.block_bytes)
