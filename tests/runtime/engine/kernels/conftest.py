"""The library of CPU kernels as the package has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runtime.engine.kernels.product_library import ProductLibrary
from tritgguf.runtime.engine.kernels import library


@pytest.fixture(scope="session")
def product_library() -> ProductLibrary:
    """The built library, or another build of its products that PRODUCT_LIBRARY names."""
    path = Path(os.environ.get("PRODUCT_LIBRARY") or library.PATH)
    if not path.exists():
        pytest.skip("the kernels weren't built: that needs a C++ compiler")
    return ProductLibrary(path)
