"""The products' library, built as the package builds it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.runtime.engine.kernels.product_library import ProductLibrary

SOURCES = ROOT / "runtime" / "engine" / "kernels" / "native"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)


@pytest.fixture(scope="session")
def product_library(tmp_path_factory: pytest.TempPathFactory) -> ProductLibrary:
    if given := os.environ.get("PRODUCT_LIBRARY"):
        return ProductLibrary(Path(given))
    path = tmp_path_factory.mktemp("products") / "libproducts.so"
    subprocess.run(["c++", *FLAGS, *map(str, SOURCES.glob("*.cpp")), "-o", str(path)], check=True)
    return ProductLibrary(path)
