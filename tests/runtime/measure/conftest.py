"""The files of tests/evaluated_models.py, made once."""

from pathlib import Path

import pytest

from tests import evaluated_models


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated_models.base_file(tmp_path_factory.mktemp("evaluated") / "base.gguf")


@pytest.fixture(scope="session")
def noisy(base: Path) -> Path:
    return evaluated_models.noisy_file(base, base.with_name("noisy.gguf"))
