"""The checkpoints of tests/checkpoints.py and tests/packed_checkpoints.py, each built once per test module."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import checkpoints, packed_checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a recipe's checkpoint, for reading only."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        module = packed_checkpoints if name in packed_checkpoints.PACKED else checkpoints
        return root / name if (root / name).exists() else module.build(name, root / name)

    return folder
