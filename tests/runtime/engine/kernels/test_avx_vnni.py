"""AVX-VNNI on a processor without it: the same code in the encodings of AVX-512 gives the bits of the other kernels."""

from __future__ import annotations

import platform
import shutil
import subprocess

import numpy as np
import pytest

from tests.once import once
from tests.runtime.engine.kernels.product_library import SOURCES, ProductLibrary
from tests.runtime.engine.kernels.test_products import every_type, random_activations, random_weights

FLAGS = ("-std=c++17", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-DEVEX_ENCODING", "-w")


@pytest.fixture(scope="module")
def in_evex(tmp_path_factory: pytest.TempPathFactory, product_library: ProductLibrary) -> ProductLibrary:
    if platform.machine() not in ("x86_64", "AMD64") or not product_library.has("avx512-vnni"):
        pytest.skip("this processor doesn't have AVX-512-VNNI")
    if product_library.has("avx-vnni"):
        pytest.skip("this processor has AVX-VNNI: test_products.py tests it")
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("g++ isn't installed")
    path = once(
        tmp_path_factory,
        "avx_vnni.so",
        lambda path: subprocess.run([compiler, *FLAGS, *SOURCES, "-o", path], check=True),
    )
    return ProductLibrary(path, "avx-vnni")


@every_type
@pytest.mark.parametrize(
    ("n_inputs", "n_rows", "n_columns"),
    [(256, 1, 1), (2304, 37, 1), (2304, 37, 19), (5376, 64, 6), (2304, 37, 3), (1792, 50, 8)],
)
def test_same_bits(
    type_number: int,
    n_inputs: int,
    n_rows: int,
    n_columns: int,
    in_evex: ProductLibrary,
    product_library: ProductLibrary,
) -> None:
    rng = np.random.default_rng(9)
    weights = random_weights(type_number, n_inputs, n_rows, rng)
    activations = random_activations(n_columns, n_inputs, rng)
    found = in_evex.multiply(type_number, weights, activations, 2)
    assert found.tobytes() == product_library.using("avx2").multiply(type_number, weights, activations).tobytes()
