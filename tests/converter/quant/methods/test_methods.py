"""The methods against brute force and against the rules they are named for."""

import itertools

import numpy as np
import pytest

from tritgguf.converter.core.tensors import Floats
from tritgguf.converter.quant.method import method_named, methods

each_method = pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)


def squared_error(rows: np.ndarray, coded) -> float:
    return float(((rows.astype(np.float64) - coded.dequantize()) ** 2).sum())


def test_the_methods_are_those_of_the_table() -> None:
    assert list(methods()) == ["absmean", "four_levels", "mse"]


def test_mse_finds_the_best_of_all_codes_and_scales() -> None:
    rng = np.random.default_rng(21)
    all_codes = np.array([codes for codes in itertools.product((-1, 0, 1), repeat=8) if any(codes)], np.float64)
    counts = (all_codes**2).sum(axis=1)
    for trial in range(40):
        weights = (rng.standard_normal(8) * rng.choice([1, 1, 5], 8)).astype(np.float32)
        least = (weights.astype(np.float64) ** 2).sum() - ((all_codes @ weights) ** 2 / counts)[
            all_codes @ weights > 0
        ].max()
        found = squared_error(weights[None], method_named("mse").quantize(Floats.of(weights[None]), 8))
        assert found <= least * (1 + 1e-4), f"trial {trial}: {found} is worse than {least}"


def test_mse_has_the_error_known_for_gaussian_weights() -> None:
    weights = np.random.default_rng(22).standard_normal((400, 256)).astype(np.float32)
    relative = squared_error(weights, method_named("mse").quantize(Floats.of(weights), 256)) / float((weights**2).sum())
    assert relative == pytest.approx(0.190, abs=0.002)


def test_absmean_is_its_formula() -> None:
    weights = np.random.default_rng(23).standard_normal((30, 512)).astype(np.float32)
    coded = method_named("absmean").quantize(Floats.of(weights), 256)
    for row in range(30):
        for block in range(2):
            values = weights[row, 256 * block : 256 * (block + 1)].astype(np.float64)
            scale = np.abs(values).mean()
            expected = np.clip(np.round(values / scale), -1, 1)
            away = np.abs(np.abs(values / scale) - 0.5) > 1e-5  # float32 may round a tie the other way
            np.testing.assert_array_equal(coded.codes[row, 256 * block : 256 * (block + 1)][away], expected[away])
            assert coded.scales[row, block] == np.float16(scale)


@each_method
@pytest.mark.parametrize("magnitude", [1e-30, 1e-10, 1e-6, 1.0, 1e4])
def test_every_magnitude_gives_finite_fp16_scales(method, magnitude: float) -> None:
    weights = (np.random.default_rng(24).standard_normal((8, 512)) * magnitude).astype(np.float32)
    coded = method.quantize(Floats.of(weights), 256)
    assert np.isfinite(coded.scales).all()
    np.testing.assert_array_equal(coded.scales, coded.scales.astype(np.float16).astype(np.float32))
    assert not coded.codes[np.repeat(coded.scales == 0, 256, axis=1)].any()


@each_method
def test_zero_groups_stay_zero(method) -> None:
    weights = np.zeros((2, 512), np.float32)
    weights[1, 300] = -0.5
    coded = method.quantize(Floats.of(weights), 256)
    assert not coded.dequantize()[0].any()
    assert not coded.dequantize()[1, :256].any()
    assert coded.codes[1, 300] == -1
    assert np.isfinite(coded.scales).all()


def test_mse_keeps_what_is_ternary_and_absmean_does_not() -> None:
    """Why a grid is looked for first: absmean shrinks ternary weights by the share that isn't zero."""
    weights = np.random.default_rng(25).integers(-1, 2, (4, 256)).astype(np.float32) * np.float32(0.5)
    np.testing.assert_array_equal(method_named("mse").quantize(Floats.of(weights), 256).dequantize(), weights)
    shrunk = method_named("absmean").quantize(Floats.of(weights), 256)
    np.testing.assert_allclose(shrunk.scales[:, 0], np.abs(weights).mean(axis=1), rtol=1e-3)
