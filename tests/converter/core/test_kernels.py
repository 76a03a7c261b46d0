"""Kernels against numpy: the same bytes, bit for bit, whatever the values, the threads and the chunks."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import checkpoints, packed_checkpoints
from tests.kernel_comparison import DTYPES, Rows, assert_same, computed_by, examples, rows, seeds, stored
from tritgguf.converter import TensorError, convert
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.merged_tensor import add_product
from tritgguf.converter.checkpoint.packings import base3, bitnet_packed
from tritgguf.converter.checkpoint.packings.bitnet_packed import BitnetTensor
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.conversion.pipeline import write_model
from tritgguf.converter.core import rows as core_rows
from tritgguf.converter.core import tensors
from tritgguf.converter.core.floats import BEYOND_F16, checked, narrowed
from tritgguf.converter.core.tensors import CodedRows, Floats, PackedRows
from tritgguf.converter.gguf_io.fours import Fours
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning import encoders
from tritgguf.converter.planning.request import Request
from tritgguf.converter.quant.codec import TernaryCodec, codecs
from tritgguf.converter.quant.codecs.f16 import CODEC as F16
from tritgguf.converter.quant.codecs.q2_0 import CODEC as Q2_0
from tritgguf.converter.quant.codecs.tq2_0 import CODEC as TQ2_0
from tritgguf.converter.quant.grids import code_on_grid, find_grid, fp16_error
from tritgguf.converter.quant.method import Method, method_named, methods
from tritgguf.converter.quant.methods.absmean import absmean

TERNARY = [codec for codec in codecs().values() if isinstance(codec, TernaryCodec)]


@pytest.mark.parametrize("group", [16, 32, 64, 96, 256, 512])
@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)
@examples
@given(values=rows(n_columns=1536), dtype=DTYPES)
def test_methods(method, group: int, values: np.ndarray, dtype: str) -> None:
    assert_same(lambda: method.quantize(stored(values, dtype), group))


@pytest.mark.parametrize("group", [32, 64, 256])
@examples
@given(values=rows())
def test_scales_of_float32(group: int, values: np.ndarray) -> None:
    assert_same(lambda: absmean(values, group))


@pytest.mark.parametrize("word", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)
def test_a_value_that_is_not_finite_makes_a_scale_that_is_not(method, word: int) -> None:
    words = np.full((2, 512), 0x3C00, np.uint16)
    words[1, 300] = word
    for how in ("numpy", "compiled"):
        with computed_by(how):
            assert not np.isfinite(method.quantize(Floats(words, "BF16"), 256).scales[1, 1])


@pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)
@examples
@given(seed=seeds, n_rows=st.integers(1, 3), n_blocks=st.integers(1, 3))
def test_ternary_codecs(codec: TernaryCodec, seed: int, n_rows: int, n_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_rows, n_blocks * codec.block)).astype(np.int8)
    scales = rng.uniform(0, 1, (n_rows, n_blocks)).astype(np.float16).astype(np.float32)
    coded = CodedRows(codes, scales, codec.block)
    assert_same(lambda: codec.pack(coded))
    assert_same(lambda: codec.unpack(codec.pack(coded)))
    assert_same(coded.dequantize)
    damaged = rng.integers(0, 256, (n_rows, n_blocks * codec.block_bytes), np.uint8)
    assert_same(lambda: codec.unpack(damaged))


@pytest.mark.parametrize("packing", ["base-3", "four rows"])
@pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)
@examples
@given(seed=seeds, n_blocks=st.integers(1, 70), damaged=st.booleans())
def test_stored_rows_are_packed_like_their_codes(
    codec: TernaryCodec, packing: str, seed: int, n_blocks: int, damaged: bool
) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(12)[:7]
    codes = rng.integers(-1, 2, (12, n_blocks * codec.block)).astype(np.int8)
    group = codec.block * int(rng.choice([n for n in (1, 2, 5, n_blocks) if n_blocks % n == 0]))
    scales = rng.uniform(0, 1, (7, codes.shape[1] // group)).astype(np.float32)
    if packing == "base-3":
        stored = np.pad(base3.pack(codes), ((0, 0), (0, int(rng.integers(3)))))
    else:
        stored = bitnet_packed.pack(codes)
    rows = PackedRows(packing, stored, numbers, codes.shape[1], scales, group)
    if damaged:
        column = rng.integers(codes.shape[1])
        number = numbers[rng.integers(7)]
        if packing == "base-3":
            stored[number, column // 4] = rng.integers(81, 256)
        else:
            stored[number % 3, column] |= 3 << number // 3 * 2
    with computed_by("compiled"):
        packed = codec.pack_stored(rows)
    if damaged:
        assert packed is None
    else:
        assert packed is not None
        with computed_by("numpy"):
            assert codec.pack_stored(rows) is None
            np.testing.assert_array_equal(packed, codec.pack(CodedRows(codes[numbers], scales, group)))


@pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)
@examples
@given(seed=seeds, n_groups=st.integers(1, 40), four=st.booleans())
def test_groups_of_128_are_packed_like_their_codes(codec: TernaryCodec, seed: int, n_groups: int, four: bool) -> None:
    """Rows end anywhere in the kernel's strips of 2048; a type of four levels holds code 2 too."""
    rng = np.random.default_rng(seed)
    n_columns = n_groups * max(codec.block, 128)
    codes = rng.integers(-1, 3 if four and 4 in codec.exact_levels else 2, (5, n_columns)).astype(np.int8)
    group = max(codec.block, 128)
    scales = np.repeat(rng.uniform(-1, 1, (5, n_columns // group)), group // 128, axis=1).astype("<f2")
    stored = fours_of(codes, scales)
    numbers = rng.permutation(5)[:3]
    kept = scales[numbers].astype(np.float32)
    rows = PackedRows("fours", stored, numbers, n_columns, kept, 128)
    with computed_by("compiled"):
        packed = codec.pack_stored(rows)
    with computed_by("numpy"):
        assert codec.pack_stored(rows) is None
        np.testing.assert_array_equal(packed, codec.pack(CodedRows(codes[numbers], kept, 128)))
    kind = Fours()
    assert_same(lambda: kind.scales_and_levels(stored, stored[0, :0]))
    assert kind.scales_and_levels(stored, stored[0, :0])[1] == (4 if (codes == 2).any() else 3)
    assert_same(lambda: kind.codes(stored, n_columns))
    np.testing.assert_array_equal(kind.codes(stored, n_columns), codes)
    np.testing.assert_array_equal(kind.scales(stored, stored[0, :0]), scales)


@pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)
@examples
@given(seed=seeds, n_blocks=st.integers(1, 40), damaged=st.booleans())
def test_quarters_are_packed_like_their_codes(codec: TernaryCodec, seed: int, n_blocks: int, damaged: bool) -> None:
    rng = np.random.default_rng(seed)
    n_columns = n_blocks * max(codec.block, 128)
    codes = rng.integers(-1, 2, (5, n_columns)).astype(np.int8)
    digits = (codes + 1).astype(np.uint8).reshape(5, -1, 4, 32) << np.array([6, 4, 2, 0], np.uint8)[:, None]
    stored = digits.sum(axis=2, dtype=np.uint8).reshape(5, -1)
    numbers = rng.permutation(5)[:3]
    rows = PackedRows("quarters", stored, numbers, n_columns, np.ones((3, 1), np.float32), n_columns)
    if damaged:
        stored[numbers[rng.integers(3)], rng.integers(n_columns // 4)] |= 3 << 2 * rng.integers(4)
    with computed_by("compiled"):
        packed = codec.pack_stored(rows)
    if damaged:
        assert packed is None
    else:
        np.testing.assert_array_equal(packed, codec.pack(CodedRows(codes[numbers], rows.scales, n_columns)))


@pytest.mark.parametrize("place", [0, 63, 64, 127, 128, 300])
def test_one_code_of_two_is_seen(place: int) -> None:
    codes = np.zeros((2, 384), np.int8)
    codes[1, place] = 2
    stored = fours_of(codes, np.full((2, 3), 0xFFFF, "<u2").view("<f2"))  # all bits of the scales are set
    for how in ("numpy", "compiled"):
        with computed_by(how), np.errstate(invalid="ignore"):
            assert Fours().scales_and_levels(stored, stored[0, :0])[1] == 4
            assert Fours().scales_and_levels(stored[:1], stored[0, :0])[1] == 3


def fours_of(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return rows of blocks of an fp16 scale and 128 codes."""
    digits = (codes + 1).astype(np.uint8).reshape(*scales.shape, 32, 4)
    packed = (digits << np.array([0, 2, 4, 6], np.uint8)).sum(axis=-1, dtype=np.uint8)
    halves = np.ascontiguousarray(scales).view(np.uint8).reshape(*scales.shape, 2)
    return np.concatenate([halves, packed], axis=-1).reshape(len(codes), -1)


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
@pytest.mark.parametrize("byte", [0, 31, 32, 63])
def test_one_invalid_code_is_refused(byte: int, shift: int) -> None:
    stored = TQ2_0.pack(CodedRows(np.zeros((2, 512), np.int8), np.ones((2, 2), np.float32), 256))
    stored[1, 66 + byte] |= 3 << shift
    with computed_by("compiled"), pytest.raises(TensorError, match="code 3"):
        TQ2_0.unpack(stored)


@examples
@given(seed=seeds)
def test_q2_0_with_negative_scales(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored = Q2_0.pack(CodedRows(rng.integers(-1, 2, (2, 128)).astype(np.int8), np.ones((2, 2), np.float32), 64))
    stored.reshape(2, 2, 18)[:, :, 1] ^= rng.integers(0, 2, (2, 2), np.uint8) * 0x80
    assert_same(lambda: Q2_0.unpack(stored))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_float_is_widened_the_same(dtype: str) -> None:
    words = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    limit = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    finite = words[(words & 0x7FFF).max(axis=1) < limit]
    assert_same(lambda: checked(Floats(finite, dtype)))
    with computed_by("compiled"):
        for word in (limit, limit + 1, limit | 0x8000, 0xFFFF):
            assert checked(Floats(np.array([0, word, 1], np.uint16), dtype))[1] is False
        for word in (limit - 1, limit - 1 | 0x8000):
            assert checked(Floats(np.array([0, word, 1], np.uint16), dtype))[1] is True


@examples
@given(values=rows(), place=st.integers(0, 511), word=st.sampled_from([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF]))
def test_float32_is_read_the_same(values: np.ndarray, place: int, word: int) -> None:
    words = values.view(np.uint32).copy()
    assert_same(lambda: checked(Floats(words, "F32")))
    words[0, place] = word
    assert_same(lambda: checked(Floats(words, "F32")))


@examples
@given(values=rows(), power=st.integers(-30, 30))
def test_what_fp16_changes_is_found_the_same(values: np.ndarray, power: int) -> None:
    scales = np.abs(values) / max(float(np.abs(values).max()), 1e-30) * np.float32(2.0) ** power
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same(lambda: fp16_error(scales.astype(np.float32)))


@pytest.mark.parametrize("n_columns", [1, 7, 256, 300, 600])
@examples
@given(seed=seeds, n_rows=st.integers(0, 5), rank=st.integers(1, 9))
def test_products_are_added_the_same(n_columns: int, seed: int, n_rows: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    values, left, right = (
        (rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 9)).astype(np.float32)
        for shape in ((n_rows, n_columns), (n_rows, rank), (rank, n_columns))
    )
    scaling = np.float32(rng.standard_normal())

    def added() -> np.ndarray:
        into = values.copy()
        add_product(left, right, scaling, into)
        return into

    assert_same(added)


@pytest.mark.parametrize("n_columns", [1, 7, 8, 100, 256])
@examples
@given(seed=seeds, invalid=st.booleans())
def test_bitnet_packing(n_columns: int, seed: int, invalid: bool) -> None:
    rng = np.random.default_rng(seed)
    digits = rng.integers(0, 3, (4, 5, n_columns), np.uint8)
    if invalid:
        digits[rng.integers(4), rng.integers(5), rng.integers(n_columns)] = 3
    packed = (digits << np.array([0, 2, 4, 6], np.uint8)[:, None, None]).sum(axis=0).astype(np.uint8)
    stored = StoredTensor("w", "U8", packed.shape, Path("w"), packed.reshape(-1))
    tensor = BitnetTensor("w", "bitnet packing", (20, n_columns), n_columns, stored, np.ones((20, 1), np.float32))
    assert_same(lambda: tensor.read_codes(slice(None)))
    if not invalid:
        wanted = rng.permutation(20)[:7]
        np.testing.assert_array_equal(tensor.read_codes(wanted).codes, digits.reshape(20, -1)[wanted].astype(int) - 1)


@examples
@given(values=rows(), power=st.integers(-30, 20))
def test_float16_is_rounded_the_same(values: np.ndarray, power: int) -> None:
    near = values / max(float(np.abs(values).max()), 1e-30) * np.float32(2.0) ** power
    assert_same(lambda: narrowed(Floats.of(np.clip(near, -65504, 65504).astype(np.float32))))


@examples
@given(values=rows(), power=st.integers(-30, 20), dtype=DTYPES)
def test_stored_floats_become_f16_as_their_values_do(values: np.ndarray, power: int, dtype: str) -> None:
    near = values / max(float(np.abs(values).max()), 1e-30) * np.float32(2.0) ** power
    floats = stored(near, dtype)
    assert_same(lambda: narrowed(floats) if narrowed(floats)[1] < BEYOND_F16 else narrowed(floats)[1])
    packed = F16.encode_stored(floats)
    if packed is None:
        with pytest.raises(TensorError, match="f16 ends"):
            F16.encode(checked(floats)[0])
    else:
        np.testing.assert_array_equal(packed, F16.encode(checked(floats)[0]))


@pytest.mark.parametrize(("dtype", "word"), [("BF16", 0x7FC0), ("BF16", 0xFF80), ("F16", 0x7C00), ("F16", 0xFE00)])
def test_what_is_not_finite_does_not_become_f16(dtype: str, word: int) -> None:
    floats = Floats(np.array([[0, word, 1]], np.uint16), dtype)
    for how in ("numpy", "compiled"):
        with computed_by(how):
            assert F16.encode_stored(floats) is None


def test_halfway_between_fp16_values_and_at_its_ends() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, between, np.nextafter(between, 0), np.nextafter(between, np.float32(np.inf))])
    assert_same(lambda: narrowed(Floats.of(np.concatenate([values, -values]))))
    for value in (65504.0, 65519.9, 65520.0, 3e38):
        assert_same(lambda value=value: narrowed(Floats.of(np.array([1.0, -value], np.float32)))[1])


@examples
@given(values=rows(), group=st.sampled_from([32, 64, 256]), dtype=DTYPES)
def test_codes_on_a_grid(values: np.ndarray, group: int, dtype: str) -> None:
    assert_same(lambda: code_on_grid(stored(values, dtype), group))


@pytest.mark.parametrize(
    ("name", "byte", "message"),
    [("falcon3", 0b11, "code 3"), ("14b-seed", 81, "byte 81"), ("14b-padded", 255, "byte 255")],
)
def test_damaged_packings_are_refused(name: str, byte: int, message: str, tmp_path: Path) -> None:
    folder = source(name, tmp_path / "model")
    opened = open_checkpoint(folder, linear=()).tensors
    assert opened is not None
    tensor = next(t for t in opened.values() if isinstance(t, tensors.CodedTensor))
    assert_same(lambda: tensor.read_codes(np.arange(tensor.shape[0])[::-1]))
    data = tensor.stored.data.copy()
    data[len(data) // 2] = byte
    damaged = replace(tensor, stored=replace(tensor.stored, data=data))
    for how in ("numpy", "compiled"):
        with computed_by(how), pytest.raises(TensorError, match=message):
            damaged.read_codes(slice(None))


@examples
@given(
    seed=seeds,
    extent=st.sampled_from([1, 16, 32, 128, 256, 1024]),
    n_outliers=st.sampled_from([0, 0, 1, 40, 3000]),
    first=st.booleans(),
    dtype=DTYPES,
)
def test_grids_are_found_the_same(seed: int, extent: int, n_outliers: int, first: bool, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    scales = np.repeat(rng.uniform(0.5, 1, (300, 1024 // max(extent, 16))), max(extent, 16), axis=1)
    values = (rng.integers(-1, 2, (300, 1024)) * (scales if extent > 1 else 0.3)).astype(np.float32)
    values[:: 1 if first else 100].flat[rng.integers(0, 1024 * 3, n_outliers)] *= np.float32(0.7)
    assert_same(lambda: find_grid(Rows(values, dtype)))


CONVERSIONS = {
    "floats, mse": ("llama-gqa", {"type": "tq2_0", "method": "mse"}),
    "floats, absmean": ("qwen2", {"type": "tq1_0", "method": "absmean"}),
    "floats as f16": ("llama-llama3", {"type": "f16"}),
    "bitnet packing": ("falcon3", {}),
    "bitnet packing, a scale per row": ("llama-rows", {"type": "q2_k", "allow_lossy": True}),
    "bitnet latent weights": ("2b4t-online", {"type": "q4_0"}),
    "base-3 packing": ("14b-seed", {"type": "q2_0"}),
    "base-3 packing with padding": ("14b-padded", {"type": "q4_0"}),
    "grid of 128": ("bonsai", {"type": "q2_0"}),
}


def source(name: str, folder: Path) -> Path:
    build_it = packed_checkpoints.build if name in packed_checkpoints.PACKED else checkpoints.build
    return build_it(name, folder)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_file_is_the_same_whatever_made_it(name: str, tmp_path: Path, monkeypatch) -> None:
    checkpoint, options = CONVERSIONS[name]
    folder = source(checkpoint, tmp_path / "model")
    found = {}
    # Row by row; once with each row as a piece of work of its own, which takes seconds.
    rows = (1, 1 if name == "floats, mse" else 3000, 3)
    for how in ("numpy", "compiled"):
        for chunk, piece, threads in ((1 << 17, 1 << 21, 1), rows, (3000, 20_000, 2), (1 << 14, 1 << 14, 5)):
            monkeypatch.setattr(core_rows, "CHUNK_VALUES", chunk)
            monkeypatch.setattr(encoders, "PIECE_VALUES", piece)
            with computed_by(how):
                out = tmp_path / "out.gguf"
                convert(folder, out, threads=threads, check=False, force=True, **options)
            found[how, chunk, threads] = hashlib.sha256(out.read_bytes()).hexdigest()
    assert len(set(found.values())) == 1, found


def test_numpy_takes_few_values_at_a_time(tmp_path: Path, monkeypatch) -> None:
    """It needs several times their memory."""
    monkeypatch.setattr(core_rows, "CHUNK_VALUES", 2000)
    taken: list[int] = []

    def code(rows: Floats, group: int) -> CodedRows:
        taken.append(rows.words.size)
        return method_named("absmean").quantize(rows, group)

    opened = open_model(source("llama-gqa", tmp_path / "model"))
    request = replace(Request.named("tq2_0", "absmean"), method=Method("spy", code))
    most = {}
    for how in ("numpy", "compiled"):
        taken.clear()
        with computed_by(how):
            write_model(opened, tmp_path / f"{how}.gguf", request, check=None)
        most[how] = max(taken)
    assert most["numpy"] <= 2000 < most["compiled"]


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
def test_a_gguf_source_is_read_the_same(kind: str, tmp_path: Path) -> None:
    folder = source("falcon3", tmp_path / "model")
    first = convert(folder, tmp_path / "first.gguf", kind, check=False).out
    found = []
    for how in ("numpy", "compiled"):
        with computed_by(how):
            found.append(convert(first, tmp_path / f"{how}.gguf", "q4_0", check=False).out.read_bytes())
    assert found[0] == found[1]
