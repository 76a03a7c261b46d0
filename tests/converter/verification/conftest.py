"""A file to verify."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tritgguf.converter import convert


@pytest.fixture(scope="session")
def ordinary(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama-gqa, ordinary floats, as F16."""
    return convert(model("llama-gqa"), tmp_path_factory.mktemp("f16") / "f16.gguf", "f16", check=False).out
