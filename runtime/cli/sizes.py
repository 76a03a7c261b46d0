"""Sizes of files, as the commands print them."""

from __future__ import annotations


def shown_size(n_bytes: int) -> str:
    """Megabytes, or gigabytes from one on, of a million and a thousand million bytes."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"
