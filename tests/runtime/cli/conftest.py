"""What the tests of commands share."""

import pytest


@pytest.fixture(autouse=True)
def _token_ids_here(token_ids_here: None) -> None:
    """No further process for each conversion that a command does in this process."""
