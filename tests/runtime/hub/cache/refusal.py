"""What a command that refuses prints."""

from __future__ import annotations


def assert_one_error_line(code: int, said: str, errors: str) -> None:
    """Exit code 1, nothing on standard output, and one line on standard error."""
    assert (code, said) == (1, ""), errors
    assert errors.startswith("error: "), errors
    assert errors.count("\n") == 1, errors
