"""Sizes in decimal units: read from an option, written for people. 1 MB is 10**6 bytes, 1 GB is 10**9."""

from __future__ import annotations

import re

from tritgguf.converter.errors import UnsupportedError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_size(size: int | str) -> int:
    """Return a size such as 4000000000, "4G" or "500M" in bytes; raise UnsupportedError for anything else.

    >>> parse_size("1.5G")
    1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", str(size).strip().upper())
    n_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if n_bytes < 1:
        raise UnsupportedError(f"{size!r} is not a valid size; expected bytes, or a number with K, M or G, such as 4G")
    return n_bytes


def format_size(n_bytes: int) -> str:
    """Return bytes in MB, from 10**9 bytes on in GB, with two decimals.

    >>> format_size(6_523_900_928)
    '6.52 GB'
    """
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"
