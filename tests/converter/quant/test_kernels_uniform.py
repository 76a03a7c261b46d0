"""The kernels of the uniform codec against numpy: the same bytes, whatever the values and the processor's level."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import checkpoints
from tests.checkpoint_recipes import RECIPES
from tests.kernel_comparison import (
    DTYPES,
    Rows,
    assert_same,
    assert_same_at_each_level,
    computed_by,
    examples,
    rows,
    seeds,
    stored,
)
from tritgguf.converter import TensorError, form_named, quantize
from tritgguf.converter.checkpoint.packings.uniform_trits import UniformTensor, packed_groups
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core import rows as core_rows
from tritgguf.converter.core.floats import squares
from tritgguf.converter.core.tensors import CodedRows, Floats
from tritgguf.converter.quant.uniform import (
    ENTRIES,
    GROUP,
    Codebook,
    codebook,
    highest_code,
    largest_step,
    sample_gains,
    steps_of,
)

DIGITS = (1, 2, 3)


def book(values: np.ndarray, digits: int, seed: int) -> Codebook:
    """Return a codebook of rising steps near what the values need; sometimes all are zero."""
    rng = np.random.default_rng(seed)
    top = float(np.abs(values).max()) / highest_code(digits) * rng.choice([0, 0.5, 1])
    entries = top * 2.0 ** -np.sort(rng.uniform(0, 12, ENTRIES))[::-1]
    return Codebook(entries.astype(np.float32), digits)


@pytest.mark.parametrize("digits", DIGITS)
@examples
@given(values=rows(n_columns=272), seed=seeds)
def test_codes_and_steps(digits: int, values: np.ndarray, seed: int) -> None:
    chosen = book(values, digits, seed)
    groups = values.reshape(-1, GROUP)
    assert_same_at_each_level(lambda: chosen.code(values))
    assert_same_at_each_level(lambda: steps_of(groups, highest_code(digits)))
    wanted = steps_of(groups, highest_code(digits))
    assert_same_at_each_level(lambda: sample_gains(groups, wanted, chosen))


@pytest.mark.parametrize("digits", DIGITS)
@examples
@given(values=rows(n_columns=272), dtype=DTYPES)
def test_the_largest_step_and_the_codebook(digits: int, values: np.ndarray, dtype: str) -> None:
    assert_same_at_each_level(lambda: largest_step(stored(values, dtype), highest_code(digits)))
    assert_same(lambda: codebook(Rows(values, dtype), digits, 1).steps)


@pytest.mark.parametrize("digits", DIGITS)
def test_a_step_is_the_largest_wherever_its_group_is(digits: int) -> None:
    """Groups whose largest value is no step that is higher than the highest so far are passed over."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((64, 80)).astype(np.float32)
    expected = largest_step(Floats.of(values), highest_code(digits))
    assert expected[0] == steps_of(values.reshape(-1, GROUP), highest_code(digits)).max()
    for _ in range(20):
        mixed = rng.permutation(values.reshape(-1, GROUP)).reshape(values.shape)
        assert_same_at_each_level(lambda mixed=mixed: largest_step(Floats.of(mixed), highest_code(digits)))
        assert largest_step(Floats.of(mixed), highest_code(digits)) == expected


@pytest.mark.parametrize("word", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_a_value_that_is_not_finite_is_named(word: int) -> None:
    words = np.full((4, 64), 0x3C00, np.uint16)
    words[2, 33] = word
    tensor = StoredTensor("w", "BF16", words.shape, Path("model.safetensors"), words.reshape(-1).view(np.uint8))
    for how in ("numpy", "compiled"):
        with computed_by(how), pytest.raises(TensorError, match=r"w has 1 NaN or Inf .* row 2, column 33"):
            codebook(tensor, 2, 1)


@examples
@given(seed=seeds, n=st.sampled_from([0, 1, 15, 16, 17, 255, 256, 257, 1000, 4096]), power=st.integers(-60, 60))
def test_what_rounding_loses_is_added_in_the_same_order(seed: int, n: int, power: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((1, n)) * 2.0**power).astype(np.float32)
    kept = values + (rng.standard_normal((1, n)) * 2.0 ** (power - 8)).astype(np.float32)
    assert_same_at_each_level(lambda: squares(values, kept))
    error, total = squares(values, kept)
    np.testing.assert_allclose(error, np.square(kept - values, dtype=np.float64).sum(), rtol=1e-12)
    np.testing.assert_allclose(total, np.square(values, dtype=np.float64).sum(), rtol=1e-12)


def tensor_of(blocks: np.ndarray, shape: tuple[int, int], steps: np.ndarray, digits: int) -> UniformTensor:
    packed = StoredTensor("w.trits", "U8", blocks.shape, Path("model.safetensors"), blocks.reshape(-1))
    return UniformTensor("w", "uniform trits", shape, GROUP, packed, packed, steps, digits)


@pytest.mark.parametrize("digits", DIGITS)
@examples
@given(seed=seeds, n_rows=st.integers(1, 9), n_groups=st.integers(1, 40))
def test_trits(digits: int, seed: int, n_rows: int, n_groups: int) -> None:
    rng = np.random.default_rng(seed)
    k, shape = highest_code(digits), (n_rows, n_groups * GROUP)
    steps = np.sort(rng.uniform(0.1, 1, ENTRIES)).astype(np.float32)
    coded = CodedRows(rng.integers(-k, k + 1, shape).astype(np.int8), rng.choice(steps, (n_rows, n_groups)), GROUP)
    assert_same_at_each_level(lambda: packed_groups(coded, steps, digits))
    tensor = tensor_of(packed_groups(coded, steps, digits), shape, steps, digits)
    start, stop = sorted(rng.integers(0, n_rows + 1, 2))
    for wanted in (slice(None), slice(start, max(stop, start + 1)), rng.permutation(n_rows)[:3]):
        assert_same_at_each_level(lambda wanted=wanted: tensor.read_codes(wanted))
        np.testing.assert_array_equal(tensor.read_codes(wanted).codes, coded.codes[wanted])
        np.testing.assert_array_equal(tensor.read_codes(wanted).scales, coded.scales[wanted])


@pytest.mark.parametrize("digits", DIGITS)
@examples
@given(seed=seeds)
def test_any_bytes_are_read_the_same_or_refused(digits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(ENTRIES, dtype=np.float32)
    n_blocks = -(-6 * 7 * (3 + GROUP * digits) // 136)
    blocks = rng.integers(0, 256, (n_blocks, 27), np.uint8)
    blocks[rng.random(n_blocks) < 0.9] = 0x55  # else nearly every block is damaged
    tensor = tensor_of(blocks, (6, 7 * GROUP), steps, digits)
    for row in range(6):
        assert_same_at_each_level(lambda row=row: tensor.read_codes(slice(row, row + 1)))


@pytest.mark.parametrize(("scheme", "floats"), [("uniform-d1", True), ("uniform-d2", False), ("uniform-d3", True)])
def test_a_folder_is_the_same_whatever_made_it(scheme: str, floats: bool, tmp_path: Path, monkeypatch) -> None:
    source = checkpoints.build("llama-gqa", tmp_path / "model", replace(RECIPES["llama-gqa"], layers=1))
    found = set()
    for how, chunk, threads in (("numpy", 1 << 19, 1), ("compiled", 1 << 19, 2), ("compiled", 1000, 5)):
        monkeypatch.setattr(core_rows, "CHUNK_VALUES", chunk)
        with computed_by(how):
            out = quantize(
                source, tmp_path / "out", form_named(scheme, dequantized=floats), threads=threads, force=True
            )
        found.add(hashlib.sha256((out.out / "model.safetensors").read_bytes()).hexdigest())
    assert len(found) == 1
