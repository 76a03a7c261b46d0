"""Importance-weighted fits against brute force: every code there is, every prefix, and a scan of scales."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_comparison import DTYPES, assert_same_at_each_level, examples, rows, seeds, stored
from tests.oracles import libggml
from tritgguf.converter.core.tensors import CodedRows, Floats
from tritgguf.converter.quant.codecs.q2_0 import CODEC as Q2_0
from tritgguf.converter.quant.method import Method, method_named
from tritgguf.converter.quant.weighted_fit import LARGEST_GROUP, fitted

LEVELS = {3: (-1, 0, 1), 4: (-1, 0, 1, 2)}
FP16 = 2.0**-10  # what rounding the scale may cost, relative to the error and to the weights
each_method = pytest.mark.parametrize("name", ["mse", "four_levels"])


def error(weights: np.ndarray, importance: np.ndarray, coded: CodedRows) -> float:
    return float((importance.astype(np.float64) * (weights.astype(np.float64) - coded.dequantize()) ** 2).sum())


def heavy(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * rng.choice([1, 1, 5], shape)).astype(np.float32)


def importances(rng: np.random.Generator, n_columns: int) -> np.ndarray:
    """Mean squares as layers have them: over many magnitudes, some of them zero."""
    found = np.exp(rng.normal(0, 2, n_columns)).astype(np.float32)
    return np.where(rng.random(n_columns) < 0.1, np.float32(0), found)


@pytest.mark.parametrize("levels", [3, 4])
def test_no_codes_and_scale_are_better(levels: int) -> None:
    rng = np.random.default_rng(31)
    all_codes = np.array(list(itertools.product(LEVELS[levels], repeat=7)), np.float64)
    for trial in range(25):
        weights, importance = heavy(rng, 7), importances(rng, 7)
        products, squares = all_codes @ (importance * weights), (all_codes**2) @ importance.astype(np.float64)
        gains = np.divide(products**2, squares, out=np.zeros_like(products), where=squares > 0)
        if levels == 3:
            gains = gains[products > 0]
        norm = float(importance.astype(np.float64) @ weights.astype(np.float64) ** 2)
        least = norm - gains.max(initial=0)
        found = error(weights, importance, fitted(levels, Floats.of(weights[None]), 7, importance))
        assert found <= least * (1 + 1e-6) + FP16**2 * norm, f"trial {trial}: {found} is worse than {least}"


def test_three_levels_against_every_prefix_of_the_largest() -> None:
    """The rule as docs/imatrix.md has it, written out."""
    rng = np.random.default_rng(32)
    for _ in range(20):
        weights, importance = heavy(rng, 256), importances(rng, 256)
        order = np.argsort(-np.abs(weights))
        gains = [
            (importance[kept] @ np.abs(weights[kept])) ** 2 / max(importance[kept].sum(), 1e-30)
            for kept in (order[:n] for n in range(1, 257))
        ]
        kept = order[: int(np.argmax(gains)) + 1]
        scale = importance[kept] @ np.abs(weights[kept]) / importance[kept].sum()
        coded = fitted(3, Floats.of(weights[None]), 256, importance)
        assert coded.scales[0, 0] == pytest.approx(scale, rel=2e-3)
        assert np.count_nonzero(coded.codes != 0) == pytest.approx(len(kept), abs=2)


@each_method
@examples
@given(seed=seeds, spread=st.sampled_from([0.0, 0.5, 2.0]))
def test_no_scale_of_a_scan_is_better(name: str, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    method = method_named(name)
    weights = heavy(rng, 64)
    importance = np.exp(rng.normal(0, spread, 64)).astype(np.float32)
    assert method.weighted is not None
    found = error(weights, importance, method.weighted(Floats.of(weights[None]), 64, importance))
    scan = np.linspace(0.05, 1.2, 400) * np.abs(weights).max()
    scan = np.concatenate([scan, -scan]) if method.levels == 4 else scan
    levels = np.array(LEVELS[method.levels], np.float64)
    errors = (weights[None, :, None] - scan[:, None, None] * levels) ** 2
    least = (errors.min(axis=2) @ importance).min()
    assert found <= least + FP16**2 * float(importance @ weights**2)


@examples
@given(seed=seeds, levels=st.sampled_from([3, 4]))
def test_importance_never_raises_the_weighted_error(seed: int, levels: int) -> None:
    """Against the unweighted fit, on the error that counts."""
    rng = np.random.default_rng(seed)
    weights, importance = heavy(rng, 3, 128), importances(rng, 128)
    method: Method = method_named("mse" if levels == 3 else "four_levels")
    assert method.weighted is not None
    plain = error(weights, importance, method.quantize(Floats.of(weights), 64))
    found = error(weights, importance, method.weighted(Floats.of(weights), 64, importance))
    assert found <= plain + FP16**2 * float((importance * weights**2).sum())


def test_equal_importance_is_the_unweighted_fit() -> None:
    weights = heavy(np.random.default_rng(33), 20, 512)
    plain = method_named("mse").quantize(Floats.of(weights), 256)
    for importance in (np.full(512, 3, np.float32), np.zeros(512, np.float32)):
        coded = fitted(3, Floats.of(weights), 256, importance)
        np.testing.assert_array_equal(coded.codes, plain.codes)
        np.testing.assert_array_equal(coded.scales, plain.scales)


def test_four_levels_have_the_error_known_for_gaussian_weights() -> None:
    weights = np.random.default_rng(34).standard_normal((600, 64)).astype(np.float32)
    coded = method_named("four_levels").quantize(Floats.of(weights), 64)
    relative = error(weights, np.ones(64, np.float32), coded) / float((weights**2).sum())
    assert relative == pytest.approx(0.123, abs=0.001)
    assert set(np.unique(coded.codes)) == {-1, 0, 1, 2}
    assert (coded.scales > 0).any()
    assert (coded.scales < 0).any()


def test_ggml_reads_the_four_levels() -> None:
    """Packed as Q2_0, dequantized by libggml."""
    weights = heavy(np.random.default_rng(35), 9, 192)
    coded = method_named("four_levels").quantize(Floats.of(weights), 64)
    found = libggml.dequantize(Q2_0.pack(coded), Q2_0.ggml_type)
    np.testing.assert_array_equal(found, coded.dequantize())


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("group", [16, 64, 96, LARGEST_GROUP, 512])
@examples
@given(values=rows(n_columns=1536), dtype=DTYPES, seed=seeds)
def test_kernels(levels: int, group: int, values: np.ndarray, dtype: str, seed: int) -> None:
    importance = importances(np.random.default_rng(seed), 1536)
    assert_same_at_each_level(lambda: fitted(levels, stored(values, dtype), group, importance))
