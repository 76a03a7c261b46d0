"""The library of CPU kernels as the package has it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.runtime.engine.kernels.product_library import ProductLibrary
from tritgguf.runtime.engine.kernels import library


@pytest.fixture(scope="session")
def product_library(tmp_path_factory: pytest.TempPathFactory) -> ProductLibrary:
    """The built library, or another build of its products that PRODUCT_LIBRARY names.

    It is a copy: the instructions that these tests choose are the library's state, and llama.cpp uses the other one.
    """
    path = Path(os.environ.get("PRODUCT_LIBRARY") or library.PATH)
    if not path.exists():
        pytest.skip("the kernels weren't built: that needs a C++ compiler")
    return ProductLibrary(Path(shutil.copy(path, tmp_path_factory.mktemp("products"))))
