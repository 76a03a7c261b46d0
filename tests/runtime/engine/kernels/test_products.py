"""Products of ternary weights: right against float64, as near to it as stock llama.cpp's, and the same bits always."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.ggml_products import ggml_product
from tests.oracles.libggml import dequantize
from tests.runtime.engine.kernels.product_library import Q2_0, TQ1_0, TQ2_0, Bytes, Floats, ProductLibrary
from tritgguf.converter.quant import ggml_types  # adds Q2_0 to gguf's types

TYPES = {"TQ1_0": TQ1_0, "TQ2_0": TQ2_0, "Q2_0": ggml_types.Q2_0.value}
BLOCKS = {TQ1_0: (256, 54, 52), TQ2_0: (256, 66, 64), Q2_0: (64, 18, 0)}  # values, bytes, where the scale is
ON_ARM = platform.machine().lower() in ("aarch64", "arm64")
INSTRUCTION_SETS = (
    ("neon-dotprod", "neon-i8mm") if ON_ARM else ("avx2", "avx-vnni", "avx512-vnni", "avx512-vbmi", "avx512-amx")
)
# Few columns, as many as tiles have and one more, a batch
COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 21, 33, 49, 67, 130)
MANY_RESULTS = 200

every_type = pytest.mark.parametrize("type_number", TYPES.values(), ids=TYPES.keys())


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def products(request: pytest.FixtureRequest, product_library: ProductLibrary) -> ProductLibrary:
    if not product_library.has(request.param):
        pytest.skip(f"this processor or build doesn't have {request.param}")
    return product_library.using(request.param)


def random_weights(type_number: int, n_inputs: int, n_rows: int, rng: np.random.Generator) -> Bytes:
    """Any codes, with scales between 0.01 and 0.1 of both signs."""
    values, n_bytes, scale_at = BLOCKS[type_number]
    blocks = rng.integers(0, 256, (n_rows, n_inputs // values, n_bytes), np.uint8)
    scales = rng.uniform(0.01, 0.1, blocks.shape[:2]) * rng.choice([-1, 1], blocks.shape[:2])
    blocks[..., scale_at : scale_at + 2] = scales.astype("<f2")[..., None].view(np.uint8)
    return blocks.reshape(n_rows, -1)


def random_activations(n_columns: int, n_inputs: int, rng: np.random.Generator) -> Floats:
    """Columns of different sizes, with some outliers, as models have them."""
    activations = rng.standard_normal((n_columns, n_inputs), np.float32)
    activations *= np.exp(rng.normal(0, 3, (n_columns, 1))).astype(np.float32)
    activations[rng.random(activations.shape) < 0.002] *= 20
    return activations


def in_float64(type_number: int, weights: Bytes, activations: Floats) -> np.ndarray:
    return activations.astype(np.float64) @ floats_of(type_number, weights).T


def floats_of(type_number: int, weights: Bytes) -> np.ndarray:
    return dequantize(weights, GGMLQuantizationType(type_number)).astype(np.float64)


def assert_no_further_from_float64(
    found: Floats, stock: Floats, type_number: int, weights: Bytes, activations: Floats, by_chance: float = 0
) -> None:
    """Compare errors with the size that each result would have if its terms had random signs."""
    floats = floats_of(type_number, weights)
    expected = activations.astype(np.float64) @ floats.T
    sizes = np.sqrt(activations.astype(np.float64) ** 2 @ (floats**2).T)
    ours, theirs = (float(np.sqrt((((results - expected) / sizes) ** 2).mean())) for results in (found, stock))
    assert ours <= theirs * 1.002 + by_chance + 1e-6


@every_type
@settings(max_examples=25)
@given(data=st.data())
def test_no_further_from_float64_than_stock(type_number: int, products: ProductLibrary, data: st.DataObject) -> None:
    values = BLOCKS[type_number][0]
    n_inputs = values * data.draw(st.integers(1, 2600 // values), "blocks")
    n_rows, n_columns = data.draw(st.integers(1, 140), "rows"), data.draw(st.sampled_from(COLUMNS), "columns")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    weights, offset = random_weights(type_number, n_inputs, n_rows, rng), data.draw(st.integers(0, 65), "offset")
    # Of so few results as small shapes have, any may be nearer to the right ones by chance: more are computed.
    n_products = -(-MANY_RESULTS // (n_rows * n_columns))
    all_activations = [random_activations(n_columns, n_inputs, rng) for _ in range(n_products)]
    found = np.concatenate(
        [products.multiply(type_number, weights, some, work_offset=offset) for some in all_activations]
    )
    activations = np.concatenate(all_activations)
    stock = ggml_product(type_number, weights, activations)
    # Stock rounds the scales of Q2_0's activations to F16.
    by_chance = 2**-11 if type_number == Q2_0 else 0
    assert_no_further_from_float64(found, stock, type_number, weights, activations, by_chance)


@every_type
@pytest.mark.parametrize(("n_inputs", "n_rows", "n_columns"), [(6912, 40, 513), (2048 + 256, 67, 30), (17408, 24, 41)])
def test_shapes_of_models(
    type_number: int, n_inputs: int, n_rows: int, n_columns: int, products: ProductLibrary
) -> None:
    rng = np.random.default_rng(n_inputs)
    weights = random_weights(type_number, n_inputs, n_rows, rng)
    activations = random_activations(n_columns, n_inputs, rng)
    found = products.multiply(type_number, weights, activations, 2)
    stock = ggml_product(type_number, weights, activations)
    assert_no_further_from_float64(found, stock, type_number, weights, activations)


@every_type
@settings(max_examples=15)
@given(data=st.data())
def test_same_bits_alone_among_others_and_by_threads(
    type_number: int, products: ProductLibrary, data: st.DataObject
) -> None:
    values = BLOCKS[type_number][0]
    n_inputs = values * data.draw(st.integers(1, 4608 // values), "blocks")
    n_rows, n_columns = data.draw(st.integers(1, 140), "rows"), data.draw(st.sampled_from(COLUMNS), "columns")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    weights = random_weights(type_number, n_inputs, n_rows, rng)
    activations = random_activations(n_columns, n_inputs, rng)
    found = products.multiply(type_number, weights, activations, data.draw(st.integers(1, 4), "threads"))
    column = data.draw(st.integers(0, n_columns - 1), "column")
    alone = products.multiply(type_number, weights, activations[column : column + 1], data.draw(st.integers(1, 4)))
    assert alone[0].tobytes() == found[column].tobytes()


@every_type
@pytest.mark.parametrize("n_columns", [1, 2, 8, 21])
def test_instruction_sets_give_the_same_bits(type_number: int, n_columns: int, product_library: ProductLibrary) -> None:
    rng = np.random.default_rng(3)
    weights = random_weights(type_number, 2304, 50, rng)
    activations = random_activations(n_columns, 2304, rng)
    found = [
        product_library.using(name).multiply(type_number, weights, activations).tobytes()
        for name in INSTRUCTION_SETS
        if product_library.has(name)
    ]
    assert len(set(found)) == 1


@every_type
@pytest.mark.parametrize("n_columns", [1, 2, 7, 11])
def test_columns_of_a_larger_array_and_rows_apart(type_number: int, n_columns: int, products: ProductLibrary) -> None:
    rng = np.random.default_rng(4)
    weights = random_weights(type_number, 512, 20, rng)
    activations = random_activations(n_columns, 512, rng)
    wide = np.zeros((20, weights.shape[1] + 7), np.uint8)
    wide[:, 3 : 3 + weights.shape[1]] = weights
    apart = np.full((n_columns, 600), np.nan, np.float32)
    apart[:, 40:552] = activations
    found = products.multiply(type_number, wide[:, 3 : 3 + weights.shape[1]], apart[:, 40:552])
    assert found.tobytes() == products.multiply(type_number, weights, activations).tobytes()


@every_type
@pytest.mark.parametrize("n_columns", [1, 5, 9])
def test_zeros_and_extremes(type_number: int, n_columns: int, products: ProductLibrary) -> None:
    rng = np.random.default_rng(5)
    weights = random_weights(type_number, 1024, 33, rng)
    assert not products.multiply(type_number, weights, np.zeros((n_columns, 1024), np.float32)).any()
    for size in (1e-44, 1e-38, 1e-30, 1e30, 1e34):
        activations = (size * rng.uniform(-1, 1, (n_columns, 1024))).astype(np.float32)
        found = products.multiply(type_number, weights, activations)
        expected = in_float64(type_number, weights, activations)
        assert np.abs(found - expected).max() <= max(2e-2 * np.abs(expected).max(), 1e-36)


@every_type
@pytest.mark.parametrize("code", [0, 1, 2, 3])
@pytest.mark.parametrize("n_columns", [1, 5, 9])
def test_the_largest_sums(type_number: int, code: int, n_columns: int, products: ProductLibrary) -> None:
    """All codes alike and all activations at one end: no sum of 16 bits overflows."""
    weights = random_weights(type_number, 512, 33, np.random.default_rng(6))
    if type_number != TQ1_0:
        _, n_bytes, scale_at = BLOCKS[type_number]
        blocks = weights.reshape(33, -1, n_bytes)
        (blocks[..., 2:] if scale_at == 0 else blocks[..., :64])[...] = 0x55 * code
    else:
        blocks = weights.reshape(33, -1, 54)
        blocks[..., :52] = (0, 128, 255, 86)[code]
    for sign in (1, -1):
        activations = np.full((n_columns, 512), sign, np.float32)
        np.testing.assert_allclose(
            products.multiply(type_number, weights, activations),
            in_float64(type_number, weights, activations),
            rtol=1e-5,
            atol=1e-5,
        )


@every_type
@pytest.mark.parametrize("n_columns", [1, 5, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_where_stock_is_not(
    type_number: int, n_columns: int, value: float, products: ProductLibrary
) -> None:
    rng = np.random.default_rng(7)
    weights = random_weights(type_number, 1024, 33, rng)
    activations = random_activations(n_columns, 1024, rng)
    activations[n_columns // 2, 300] = value
    found = products.multiply(type_number, weights, activations)
    stock = ggml_product(type_number, weights, activations)
    assert (np.isfinite(found) == np.isfinite(stock)).all()


def test_what_it_computes(products: ProductLibrary) -> None:
    for type_number, (values, _, _) in BLOCKS.items():
        assert products.supports(type_number, values)
        assert products.supports(type_number, 27 * values)
        assert not products.supports(type_number, values - 32)
        assert not products.supports(type_number, 0)
    assert not products.supports(2, 256)
