"""Sizes with units: read, and written."""

import pytest

from tritgguf.converter.core.sizes import format_size, parse_size
from tritgguf.converter.errors import UnsupportedError


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [("4G", 4 * 10**9), ("500M", 5 * 10**8), ("1.5GB", 15 * 10**8), ("20k", 20_000), (77, 77), ("77", 77)],
)
def test_sizes(size: int | str, n_bytes: int) -> None:
    assert parse_size(size) == n_bytes


@pytest.mark.parametrize("size", ["", "G", "-1G", "0", "4T", "four", "1e9", 0])
def test_what_is_no_size(size: int | str) -> None:
    with pytest.raises(UnsupportedError, match="such as 4G"):
        parse_size(size)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.00 MB"), (20_000, "0.02 MB"), (707_160_000, "707.16 MB"), (10**9, "1.00 GB"), (29_540_067_000, "29.54 GB")],
)
def test_shown_sizes(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text
