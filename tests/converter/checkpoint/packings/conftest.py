"""The checkpoints of tests/packed_checkpoints.py, each built once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import packed_checkpoints


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a checkpoint, for reading only."""
    root = tmp_path_factory.mktemp("packed")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else packed_checkpoints.build(name, root / name)

    return folder
