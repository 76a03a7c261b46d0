"""Products of output layers and of Q2_K: no further from float64 than stock llama.cpp, and the same bits always."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.ggml_products import ggml_product
from tests.oracles.libggml import dequantize
from tests.runtime.engine.kernels.product_library import F16, Q2_K, Q6_K, Q8_0, Bytes, Floats, ProductLibrary
from tests.runtime.engine.kernels.test_products import INSTRUCTION_SETS, random_activations

# values, bytes, where its scales are
BLOCKS = {F16: (16, 32, (0,)), Q8_0: (32, 34, (0,)), Q6_K: (256, 210, (208,)), Q2_K: (256, 84, (80, 82))}
COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 24, 25, 33, 50)

every_type = pytest.mark.parametrize("type_number", BLOCKS, ids=["F16", "Q8_0", "Q6_K", "Q2_K"])


@pytest.fixture(scope="module", params=[name for name in INSTRUCTION_SETS if not name.startswith("neon")])
def products(request: pytest.FixtureRequest, product_library: ProductLibrary) -> ProductLibrary:
    if not product_library.has(request.param):
        pytest.skip(f"this processor or build doesn't have {request.param}")
    return product_library.using(request.param)


def skip_unless_supported(products: ProductLibrary, type_number: int) -> None:
    if not products.supports(type_number, BLOCKS[type_number][0]):
        pytest.skip(f"no code of {products.instructions} for this type")


def random_case(type_number: int, n_inputs: int, n_rows: int, n_columns: int, seed: int) -> tuple[Bytes, Floats]:
    """Weights, uint8 (n_rows, row bytes), and activations (n_columns, n_inputs)."""
    rng = np.random.default_rng(seed)
    activations = random_activations(n_columns, n_inputs, rng).clip(-60000, 60000)  # stock makes them F16
    if type_number == F16:
        return (0.05 * rng.standard_normal((n_rows, n_inputs))).astype("<f2").view(np.uint8), activations
    values, n_bytes, places = BLOCKS[type_number]
    blocks = rng.integers(0, 256, (n_rows, n_inputs // values, n_bytes), np.uint8)
    if type_number == Q8_0:
        blocks[..., 2:][blocks[..., 2:] == 128] = 127  # ggml makes no -128
    for place in places:
        scales = rng.uniform(0.001, 0.01, blocks.shape[:2]).astype("<f2")
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(n_rows, -1), activations


def floats_of(type_number: int, weights: Bytes) -> np.ndarray:
    if type_number == F16:
        return weights.view("<f2").astype(np.float64)
    return dequantize(weights, GGMLQuantizationType(type_number)).astype(np.float64)


def errors(found: Floats, type_number: int, weights: Bytes, activations: Floats) -> float:
    """Return the root mean square of errors, each in the size of a sum whose terms have random signs."""
    floats = floats_of(type_number, weights)
    exact = activations.astype(np.float64)
    sizes = np.sqrt(exact**2 @ (floats**2).T)
    return float(np.sqrt((((found - exact @ floats.T) / sizes) ** 2).mean()))


def chance(weights: Bytes, activations: Floats, theirs: float) -> float:
    """Return how much nearer to the right results stock's may be by chance: it rounds activations' scales to F16.

    That turns some codes into their neighbours: of few results, either way may have the luckier ones. The root mean
    square of n errors has a standard error of 1 / sqrt(2 n) of it, of which this allows two.
    """
    n_results = len(weights) * len(activations)
    if n_results >= 500:
        return 2**-11
    floats, exact = (values.reshape(len(values), -1, 32) for values in (floats_of(Q8_0, weights), activations))
    blocks = np.einsum("cbk,rbk->crb", exact.astype(np.float64), floats)
    sizes = np.sqrt(np.einsum("cbk,rbk->cr", exact.astype(np.float64) ** 2, floats**2))
    scales = float(2**-11 * 1.1 * np.sqrt(((np.abs(blocks).sum(axis=2) / sizes) ** 2).mean()))
    return scales + theirs * float(np.sqrt(2 / n_results))


@every_type
@settings(max_examples=20)
@given(data=st.data())
def test_no_further_from_float64_than_stock_and_the_same_bits_alone(
    type_number: int, products: ProductLibrary, data: st.DataObject
) -> None:
    skip_unless_supported(products, type_number)
    values = BLOCKS[type_number][0]
    n_inputs, n_rows = (
        values * data.draw(st.integers(1, 2600 // values), "blocks"),
        data.draw(st.integers(1, 140), "rows"),
    )
    n_columns, seed = data.draw(st.sampled_from(COLUMNS), "columns"), data.draw(st.integers(0, 2**32 - 1), "seed")
    weights, activations = random_case(type_number, n_inputs, n_rows, n_columns, seed)
    found = products.multiply(type_number, weights, activations, data.draw(st.integers(1, 4), "threads"))
    ours, theirs = (
        errors(results, type_number, weights, activations)
        for results in (found, ggml_product(type_number, weights, activations))
    )
    assert ours <= theirs * 1.002 + (chance(weights, activations, theirs) if type_number == Q8_0 else 0)
    column = data.draw(st.integers(0, n_columns - 1), "column")
    alone = products.multiply(type_number, weights, activations[column : column + 1])
    assert alone[0].tobytes() == found[column].tobytes()


@every_type
@pytest.mark.parametrize("n_columns", [57, 65])
def test_a_single_column_is_left_for_the_last_panel(type_number: int, n_columns: int, products: ProductLibrary) -> None:
    skip_unless_supported(products, type_number)
    weights, activations = random_case(type_number, 512, 33, n_columns, 8)
    found = products.multiply(type_number, weights, activations)  # checks that nothing behind the results is written
    assert found[-1:].tobytes() == products.multiply(type_number, weights, activations[-1:]).tobytes()


@every_type
@pytest.mark.parametrize("n_columns", [1, 8, 30])
def test_instruction_sets_give_the_same_bits(type_number: int, n_columns: int, product_library: ProductLibrary) -> None:
    n_inputs = 65 * BLOCKS[type_number][0]
    weights, activations = random_case(type_number, n_inputs, 50, n_columns, 3)
    sets = [product_library.using(name) for name in INSTRUCTION_SETS if product_library.has(name)]
    found = [
        products.multiply(type_number, weights, activations).tobytes()
        for products in sets
        if products.supports(type_number, n_inputs)
    ]
    assert len(set(found)) <= 1


@every_type
@pytest.mark.parametrize("n_columns", [1, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_not_finite_where_stock_is_not(
    type_number: int, n_columns: int, value: float, products: ProductLibrary
) -> None:
    skip_unless_supported(products, type_number)
    weights, activations = random_case(type_number, 256, 33, n_columns, 7)
    activations[n_columns // 2, 100] = value
    for row, place in enumerate(BLOCKS[type_number][2], 3):
        weights[row, place : place + 2] = np.array([value], "<f2").view(np.uint8)
    found, stock = (multiply(type_number, weights, activations) for multiply in (products.multiply, ggml_product))
    assert (np.isfinite(found) == np.isfinite(stock)).all()


@pytest.mark.parametrize(
    ("type_number", "value", "sign"), [(Q8_0, value, sign) for value in (-127, 127) for sign in (1, -1)]
)
def test_the_largest_sums(type_number: int, value: int, sign: int, products: ProductLibrary) -> None:
    skip_unless_supported(products, type_number)
    weights, _ = random_case(type_number, 512, 33, 1, 6)
    weights.reshape(33, -1, 34)[..., 2:].view(np.int8)[...] = value
    activations = np.full((3, 512), sign, np.float32)
    expected = activations @ floats_of(type_number, weights).T
    np.testing.assert_allclose(products.multiply(type_number, weights, activations), expected, rtol=1e-5)


@pytest.mark.parametrize("codes", [0, 255])
@pytest.mark.parametrize("factor", [0x80, 0x7F, 0xFF])
@pytest.mark.parametrize("type_number", [Q6_K, Q2_K], ids=["Q6_K", "Q2_K"])
def test_the_largest_sums_of_parts(type_number: int, codes: int, factor: int, products: ProductLibrary) -> None:
    """All codes and factors at one end: no sum of 16 bits overflows."""
    weights, _ = random_case(type_number, 512, 33, 1, 6)
    blocks = weights.reshape(33, 2, -1)
    blocks[..., slice(0, 192) if type_number == Q6_K else slice(16, 80)] = codes
    blocks[..., slice(192, 208) if type_number == Q6_K else slice(0, 16)] = factor
    for sign in (1, -1):
        for n_columns in (1, 3):
            activations = np.full((n_columns, 512), sign, np.float32)
            expected = activations @ floats_of(type_number, weights).T
            found = products.multiply(type_number, weights, activations)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@every_type
def test_columns_of_a_larger_array_and_rows_apart(type_number: int, products: ProductLibrary) -> None:
    skip_unless_supported(products, type_number)
    weights, activations = random_case(type_number, 512, 21, 9, 4)
    wide = np.zeros((21, weights.shape[1] + 6), np.uint8)
    wide[:, 2 : 2 + weights.shape[1]] = weights
    apart = np.full((9, 600), np.nan, np.float32)
    apart[:, 40:552] = activations
    found = products.multiply(type_number, wide[:, 2 : 2 + weights.shape[1]], apart[:, 40:552])
    assert found.tobytes() == products.multiply(type_number, weights, activations).tobytes()


@every_type
def test_what_it_computes(type_number: int, products: ProductLibrary) -> None:
    skip_unless_supported(products, type_number)
    values = BLOCKS[type_number][0]
    assert products.supports(type_number, values)
    assert products.supports(type_number, 65 * values)
    assert not products.supports(type_number, values + 8)
