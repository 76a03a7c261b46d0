"""Weights on a grid per 16 columns in types that don't hold them: against ggml's quantizers and its own reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import tritgguf.runtime as rt
from tests import checkpoints, numpy_decoder
from tests.checkpoint_recipes import RECIPES, config
from tests.oracles import libggml
from tritgguf.converter import TensorError, UnsupportedError, convert, form_named, plan, quantize
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.export.scheme import scheme_named
from tritgguf.converter.quant.codec import FloatCodec, codec_named, codecs
from tritgguf.converter.quant.known_grid import KnownGridCodec, codes_and_steps
from tritgguf.converter.verification.verification import verify

Floats = NDArray[np.float32]
SHAPE = (32, 1024)
SMALL = replace(RECIPES["llama-gqa"], layers=1, ffn=256)  # numpy searches best grids of every 16 weights for seconds
KNOWN = [(codec, levels) for codec in codecs().values() for levels in codec.grid_levels]
# By how much less than ggml's quantizer each errs. Q4_K has one scale per 32 values, so two groups must share it, and
# NVFP4's scales have three fraction bits: there an exhaustive search below shows that little more is to be had.
FACTORS = {
    ("q2_k", 3): 6, ("q3_k", 3): 6, ("q4_k", 3): 2.2, ("q6_k", 3): 6, ("nvfp4", 3): 3,
    ("q4_k", 9): 1.02, ("q6_k", 9): 6, ("nvfp4", 9): 1.5, ("q6_k", 27): 4,
}  # fmt: skip


class InMemory(SourceTensor):
    """A float tensor for a scheme to look at."""

    def __init__(self, values: Floats) -> None:
        self.name, self.dtype, self.shape, self.values = "test", "F32", values.shape, values

    @property
    def n_bytes(self) -> int:
        return self.values.nbytes

    def read(self, rows) -> Floats:
        return self.values[rows]


def uniform(levels: int, seed: int = 0) -> Floats:
    """Return weights as the uniform codec leaves them in fp16: heavy-tailed rows, as real ones are."""
    rng = np.random.default_rng(seed)
    values = 0.03 * rng.standard_t(6, SHAPE) * np.exp(0.2 * rng.standard_normal((SHAPE[0], 1)))
    digits = {3: 1, 9: 2, 27: 3}[levels]
    coder = scheme_named(f"uniform-d{digits}").coder(InMemory(values.astype(np.float32)), None, 1)
    return coder.quantize(values.astype(np.float32)).dequantize().astype(np.float16).astype(np.float32)


def error(stored: NDArray[np.uint8], codec, values: Floats) -> float:
    """Return the relative error of bytes as ggml reads them."""
    found = libggml.dequantize(stored, codec.ggml_type).astype(np.float64)
    return float(np.linalg.norm(found - values) / np.linalg.norm(values))


def test_every_pair_has_its_factor() -> None:
    assert {(codec.name, levels) for codec, levels in KNOWN} == set(FACTORS)


@pytest.mark.parametrize(("codec", "levels"), KNOWN, ids=lambda value: getattr(value, "name", value))
def test_known_codes_are_held_better_than_by_ggml_s_quantizer(codec, levels: int) -> None:
    values = uniform(levels)
    known = KnownGridCodec(codec, levels)
    stored = known.encode(values)
    ours, stock = (error(b, codec, values) for b in (stored, libggml.quantize(values, codec.ggml_type)))
    assert ours * FACTORS[codec.name, levels] < stock, f"{ours:.4f} against {stock:.4f}"
    np.testing.assert_array_equal(known.decode(stored), libggml.dequantize(stored, codec.ggml_type))
    for row in (0, 17):  # whatever rows come along
        np.testing.assert_array_equal(known.encode(values[row : row + 1])[0], stored[row])


@pytest.mark.parametrize(("name", "levels"), [("q4_k", 9), ("nvfp4", 9), ("nvfp4", 3)])
def test_little_more_is_to_be_had(name: str, levels: int) -> None:
    """A search over what the format can express in one sub-block, with scales finer than it has."""
    values, codec = uniform(levels)[:8], codec_named(name)
    found = error(KnownGridCodec(codec, levels).encode(values), codec, values)
    if name == "nvfp4":
        groups = values.reshape(-1, 16)
        grid = np.array([0, 1, 2, 3, 4, 6, 8, 12])
        table = [libggml.dequantize(_nvfp4(byte), codec.ggml_type)[0, 0] for byte in range(127)]
        magnitudes = np.abs(groups)[:, :, None]
        errors = [((magnitudes - half * grid) ** 2).min(axis=2).sum(axis=1) for half in table]
        assert found <= np.sqrt(np.min(errors, axis=0).sum() / (groups**2).sum()) * 1.0001
        return
    subs = values.reshape(-1, 32)
    low, span = np.minimum(subs.min(axis=1), 0), np.maximum(subs.max(axis=1), 0) - np.minimum(subs.min(axis=1), 0)
    best = np.full(len(subs), np.inf)
    for factor in np.geomspace(0.8, 2.2, 80):
        step = span / 15 * factor
        for offset in np.arange(-1, 1.01, 0.125):
            zero = (-low / step + offset)[:, None]
            scaled = subs / step[:, None]
            nearest = np.clip(np.round(scaled + zero), 0, 15) - zero
            best = np.minimum(best, ((nearest - scaled) ** 2).sum(axis=1) * step**2)
    assert found <= np.sqrt(best.sum() / (subs**2).sum()) * 1.2


def _nvfp4(scale: int) -> NDArray[np.uint8]:
    """Return a block whose first value is half a unit."""
    return np.array([[scale] * 4 + [1] * 32], np.uint8)


@pytest.mark.parametrize("name", ["q3_k", "q4_k", "nvfp4"])
def test_ordinary_floats_and_odd_ones(name: str) -> None:
    codec = codec_named(name)
    assert isinstance(codec, FloatCodec)
    rng = np.random.default_rng(5)
    for size in (1.0, 0.02, 1e-4, 300):
        values = (size * rng.standard_normal((8, 512))).astype(np.float32)
        ours, stock = (
            error(b, codec, values) for b in (codec.encode(values), libggml.quantize(values, codec.ggml_type))
        )
        assert ours <= stock * 1.05, (size, ours, stock)
    zeros = np.zeros((2, 512), np.float32)
    np.testing.assert_array_equal(libggml.dequantize(codec.encode(zeros), codec.ggml_type), zeros)
    one = zeros.copy()
    one[1, 3] = 1
    assert error(codec.encode(one), codec, one) < 0.01
    stored = rng.integers(0, 256, codec.encode(zeros).shape, dtype=np.uint8)
    if name != "nvfp4":  # whose bytes 127 and above aren't scales
        stored.reshape(-1, codec.block_bytes)[:, -2 if name == "q3_k" else 1] = 0x20  # no NaN for d
        np.testing.assert_array_equal(
            np.isfinite(codec.decode(stored)), np.isfinite(libggml.dequantize(stored, codec.ggml_type))
        )


@pytest.mark.parametrize(("codec", "levels"), KNOWN, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1, 1e4])
def test_zeros_and_sizes(codec, levels: int, size: float) -> None:
    values = uniform(levels, 1)[:4] / np.float32(0.03) * np.float32(size)
    values[1], values[2, :512] = 0, 0
    if codec.name == "nvfp4" and size > 1e3:
        with pytest.raises(TensorError, match="nvfp4 ends at 2688"):
            KnownGridCodec(codec, levels).encode(values)
        return
    stored = KnownGridCodec(codec, levels).encode(values)
    found = libggml.dequantize(stored, codec.ggml_type)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1], 0)
    if size >= 1e-3 and (codec.name != "nvfp4" or size > 1e-2):
        assert error(stored, codec, values) < 0.1


def test_levels_are_found_in_fp16_and_outliers_refused() -> None:
    rng = np.random.default_rng(2)
    for highest in (1, 4, 13):
        codes = rng.integers(-highest, highest + 1, (200, 16))
        steps = np.exp(rng.normal(size=200)).astype(np.float32) / 50
        values = (codes * steps[:, None]).astype(np.float16).astype(np.float32)
        found, found_steps = codes_and_steps(values, highest)
        assert np.abs(found).max() <= highest
        np.testing.assert_allclose(found * found_steps[:, None], values, rtol=2**-10)
    values[7, 3] += np.float32(0.37) * steps[7]
    with pytest.raises(TensorError, match="1 groups"):
        codes_and_steps(values, 13)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The uniform codec's folders of one checkpoint, packed and as floats."""
    root = tmp_path_factory.mktemp("uniform")
    source = checkpoints.build("llama-gqa", root / "model", SMALL)
    forms = {f"{scheme}{floats}": (scheme, floats) for scheme in ("d1", "d2") for floats in (True, False)}
    return {
        key: quantize(source, root / key, form_named(f"uniform-{scheme}", dequantized=floats)).out
        for key, (scheme, floats) in forms.items()
    }


@pytest.mark.parametrize(
    ("key", "max_bits", "target", "expected"),
    [
        ("d1", 3, "cpu", "q2_k"), ("d1", 4, "any", "q3_k"), ("d1", 8, "cpu", "q6_k"), ("d2", 5, "cpu", "nvfp4"),
        ("d2", 5, "ollama", "q4_k"), ("d2", 7, "cpu", "q6_k"), ("d2", 16, "cpu", "f16"),
    ],
)  # fmt: skip
def test_auto_takes_what_loses_least_for_the_bits(key: str, max_bits, target: str, expected: str, folders) -> None:
    found = plan(folders[f"{key}{target == 'cpu'}"], max_bits=max_bits, target=target)
    linear = [tensor for tensor in found.tensors if tensor.spec.role == "linear"]
    assert {tensor.codec.name for tensor in linear} == {expected}
    if expected != "f16":
        errors = [tensor.error for tensor in linear]
        assert any(f"{min(errors):.2g} to {max(errors):.2g}" in note for note in found.notes)


@pytest.mark.parametrize(("key", "name"), [("d1", "q2_k"), ("d1", "q3_k"), ("d2", "q4_k"), ("d2", "nvfp4")])
def test_the_file_runs_and_verify_knows_what_made_it(key: str, name: str, folders, tmp_path: Path) -> None:
    source = folders[f"{key}False"]
    made = convert(source, tmp_path / "out.gguf", type=name, check=False)
    for tensor in made.plan.tensors:
        assert tensor.spec.role != "linear" or (tensor.exact is False and tensor.error is not None)
    checks = verify(source, made.out).tensors
    assert not [check.line for check in checks if not check.good]
    encoders = {check.encoder for check in checks if check.type == name.upper()}
    assert encoders <= {
        f"{name} for a grid of {3 ** int(key[1])} levels",
        name,
    }  # some tensors come out the same both ways
    ids = checkpoints.token_ids("llama-gqa")[:64]
    tensors = open_checkpoint(source, linear=()).tensors
    weights = {key: tensor.read(slice(None)).reshape(tensor.shape) for key, tensor in tensors.items()}
    keys = config(SMALL)
    keys.setdefault("rope_theta", keys.get("rope_parameters", {}).get("rope_theta"))
    expected = numpy_decoder.logits(weights, keys, ids)
    with rt.open(made.out, n_ctx=64) as session:
        found = session.logits(ids)
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)


def test_group_16_is_refused_in_types_with_one_scale_per_block(folders) -> None:
    for key in ("d1True", "d1False", "d2True", "d2False"):
        for name in ("tq1_0", "tq2_0", "q2_0", "q4_0"):
            with pytest.raises(TensorError, match=r"per 16 columns, which .* --allow-lossy") as stopped:
                plan(folders[key], type=name)
            assert "\n" not in str(stopped.value)
            lossy = plan(folders[key], type=name, allow_lossy=True)
            assert any(tensor.codec.name == name and tensor.exact is False for tensor in lossy.tensors)


def test_bits_that_nothing_fits(folders, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="at most 2 bits per weight for cpu; raise --max-bits"):
        plan(folders["d1True"], max_bits=2)
    assert "f16" in {tensor.codec.name for tensor in plan(folders["d1True"], max_bits=2, fallback="f16").tensors}
    with pytest.raises(UnsupportedError, match="--max-bits"):
        plan(folders["d1True"], type="q6_k", max_bits=4)


def test_damage_in_such_a_file_is_found(folders, tmp_path: Path) -> None:
    file = convert(folders["d2False"], tmp_path / "out.gguf", type="q6_k", check=False).out
    (tensor,) = [t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.ffn_up.weight"]
    with file.open("r+b") as stream:
        stream.seek(tensor.data_offset + 10)
        stream.write(b"\x5a\xa5")
    bad = [check for check in verify(folders["d2False"], file).tensors if not check.good]
    assert [check.name for check in bad] == ["blk.0.ffn_up.weight"]
    assert "1 of" in bad[0].reason
