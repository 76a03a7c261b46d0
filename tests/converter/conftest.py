"""The checkpoints of tests/checkpoints.py and its neighbours, each built once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import checkpoints, maple_model, packed_checkpoints, scaled_checkpoints


@pytest.fixture(autouse=True)
def _token_ids_here(token_ids_here: None) -> None:
    """No further process for each conversion."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a recipe's checkpoint, for reading only."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        builders = {
            **dict.fromkeys(packed_checkpoints.PACKED, packed_checkpoints.build),
            **dict.fromkeys(scaled_checkpoints.QUANTIZED, scaled_checkpoints.build),
            "maple": lambda _name, folder: maple_model.write(folder),
        }
        build = builders.get(name, checkpoints.build)
        return root / name if (root / name).exists() else build(name, root / name)

    return folder
