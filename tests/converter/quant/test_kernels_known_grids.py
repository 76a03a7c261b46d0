"""The kernels that fit types to grids and to floats, against numpy: the same bytes at every level."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import checkpoints
from tests.checkpoint_recipes import RECIPES
from tests.kernel_comparison import assert_same, assert_same_at_each_level, computed_by, rows, seeds
from tests.oracles import libggml
from tritgguf.converter import TensorError, convert, form_named, quantize
from tritgguf.converter.core import rows as core_rows
from tritgguf.converter.quant.codec import Codec, FloatCodec, codec_named, codecs
from tritgguf.converter.quant.known_grid import KnownGridCodec, codes_and_steps

KNOWN = [(codec, levels) for codec in codecs().values() for levels in codec.grid_levels]
SEARCHED = ("q3_k", "q4_k", "q6_k", "nvfp4")
examples = settings(max_examples=15, deadline=None)  # numpy takes long


@st.composite
def on_grid(draw: st.DrawFn, levels: int, n_groups: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Codes, int8 (n_groups, 16), and steps of many kinds: alike, of very different size, zero, tiny, huge."""
    rng = np.random.default_rng(draw(seeds))
    highest = (levels - 1) // 2
    codes = np.rint(np.clip(rng.standard_t(3, (n_groups, 16)) * highest / 2, -highest, highest)).astype(np.int8)
    codes[rng.random(n_groups) < 0.1] = 0
    kind = draw(st.sampled_from(["usual", "usual", "wide", "zeros", "one", "fp16"]))
    power = draw(st.sampled_from([-140, -40, -24, -20, -7, -7, -7, 0, 8, 16, 22, 30, 60]))
    spread = {"usual": 0.3, "wide": 8.0, "zeros": 0.3, "one": 0.0, "fp16": 0.3}[kind]
    steps = np.exp(spread * rng.standard_normal(n_groups)) * 2.0**power
    if kind == "zeros":
        steps[rng.random(n_groups) < 0.7] = 0
    if kind == "fp16":
        steps = np.clip(steps, 0, 65504).astype(np.float16).astype(np.float64)
    return codes, np.minimum(steps, 3e38).astype(np.float32)


@pytest.mark.parametrize("levels", [3, 9, 27])
@examples
@given(data=st.data(), kind=st.sampled_from(["F32", "F16", "BF16"]), n_outliers=st.sampled_from([0, 0, 1, 9]))
def test_codes_and_steps(levels: int, data: st.DataObject, kind: str, n_outliers: int) -> None:
    codes, steps = data.draw(on_grid(levels, n_groups=70))
    with np.errstate(over="ignore"):
        values = np.clip(codes * steps[:, None], -3e38, 3e38)
        if kind == "F16":
            values = np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
    if kind == "BF16":
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    rng = np.random.default_rng(1)
    values.reshape(-1)[rng.integers(0, values.size, n_outliers)] *= np.float32(1.3)
    assert_same_at_each_level(lambda: codes_and_steps(values, (levels - 1) // 2))


@pytest.mark.parametrize(("codec", "levels"), KNOWN, ids=lambda value: getattr(value, "name", value))
@examples
@given(data=st.data())
def test_fits_to_grids(codec: Codec, levels: int, data: st.DataObject) -> None:
    n_blocks = data.draw(st.sampled_from([1, 4, 17, 19]))
    subs = codec.block // 16
    codes, steps = data.draw(on_grid(levels, n_groups=n_blocks * subs))
    assert_same_at_each_level(lambda: codec.pack_grid(codes.reshape(-1, subs, 16), steps.reshape(-1, subs)))


@pytest.mark.parametrize(("codec", "levels"), KNOWN, ids=lambda value: getattr(value, "name", value))
def test_steps_beyond_a_type_are_refused(codec: Codec, levels: int) -> None:
    """Also where only one block has them."""
    codes = np.full((3, codec.block // 16, 16), 1, np.int8)
    steps = np.ones(codes.shape[:2], np.float32)
    steps[1, 2] = 1e12
    for how in ("numpy", "compiled"):
        with computed_by(how), pytest.raises(TensorError, match="f32"):
            codec.pack_grid(codes, steps)


@pytest.mark.parametrize("name", SEARCHED)
@examples
@given(values=rows(n_columns=1280), power=st.sampled_from([0, 0, -6, 8, 20, -40]))
def test_searches_for_floats(name: str, values: np.ndarray, power: int) -> None:
    codec = codec_named(name)
    assert isinstance(codec, FloatCodec)
    near = values / max(float(np.abs(values).max()), 1e-30) * np.float32(2.0) ** power
    for some in (near.astype(np.float32), values):
        assert_same_at_each_level(lambda some=some: codec.encode(some))


@pytest.mark.parametrize("name", ["q2_k", *SEARCHED])
@examples
@given(seed=seeds)
def test_any_bytes_are_read_as_ggml_does(name: str, seed: int) -> None:
    codec, rng = codec_named(name), np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (3, 5, codec.block_bytes), np.uint8)
    for at in {"q2_k": (81, 83), "q3_k": (109,), "q4_k": (1, 3), "q6_k": (209,), "nvfp4": ()}[name]:
        blocks[..., at] &= 0xBB  # no Inf or NaN
    if name == "nvfp4":
        blocks[..., :4] %= 127  # ggml reads other bytes its own way
    stored = blocks.reshape(3, -1)
    assert_same_at_each_level(lambda: codec.dequantize(stored))
    np.testing.assert_array_equal(codec.dequantize(stored), libggml.dequantize(stored, codec.ggml_type))


def test_every_scale_byte_of_nvfp4_is_read_the_same() -> None:
    stored = np.full((256, 36), 0x52, np.uint8)
    stored[:, :4] = np.arange(256)[:, None]
    assert_same(lambda: codec_named("nvfp4").dequantize(stored))


@pytest.mark.parametrize(
    ("scheme", "options"), [("d1", {"max_bits": 4}), ("d2", {"max_bits": 5}), ("d3", {"type": "q6_k"})]
)
def test_a_file_is_the_same_whatever_made_it(scheme: str, options: dict, tmp_path: Path, monkeypatch) -> None:
    recipe = replace(RECIPES["llama-gqa"], layers=1, ffn=256)
    folder = quantize(
        checkpoints.build("llama-gqa", tmp_path / "model", recipe), tmp_path / "q", f"uniform-{scheme}"
    ).out
    packed = quantize(tmp_path / "model", tmp_path / "p", form_named(f"uniform-{scheme}", dequantized=False)).out
    found: dict[Path, set[str]] = {folder: set(), packed: set()}
    for how, chunk, threads in (("numpy", 1 << 19, 1), ("compiled", 1 << 19, 2), ("compiled", 3000, 5)):
        monkeypatch.setattr(core_rows, "CHUNK_VALUES", chunk)
        for source in found:
            with computed_by(how):
                out = convert(source, tmp_path / "out.gguf", threads=threads, check=False, force=True, **options).out
            if chunk > 3000 or "type" in options:  # a smaller sample may choose another type
                found[source].add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert [len(hashes) for hashes in found.values()] == [1, 1]


@pytest.mark.parametrize("level", ["q2_k", "nvfp4"])
def test_a_grid_s_rows_are_encoded_one_by_one_the_same(level: str) -> None:
    rng = np.random.default_rng(3)
    values = (rng.integers(-1, 2, (5, 64, 16)) * rng.uniform(0.01, 0.02, (5, 64, 1))).astype(np.float16)
    rows_on_grid = values.astype(np.float32).reshape(5, -1)
    known = KnownGridCodec(codec_named(level), 3)
    whole = known.encode(rows_on_grid)
    for row in range(5):
        np.testing.assert_array_equal(known.encode(rows_on_grid[row : row + 1])[0], whole[row])
