"""Whole numbers between two bounds as a rule of a grammar: a range of digits for each place."""

from __future__ import annotations


def integer_range(low: int | None, high: int | None) -> str:
    """Return the alternatives for whole numbers from `low` to `high`, as decimal digits; None for no bound.

    >>> integer_range(3, 12)
    '[3-9] | "1" [0-2]'
    """
    top = 10**16 - 1
    low, high = -top if low is None else low, top if high is None else high
    parts = []
    if low < 0:
        parts.append(f'"-" ({" | ".join(_digits(max(1, -high), -low))})')
    if high >= 0:
        parts += _digits(max(low, 0), high)
    return " | ".join(parts)


def _digits(low: int, high: int) -> list[str]:
    """Return alternatives for 0 <= low <= number <= high, without leading zeros."""
    found = []
    while low <= high:
        # The largest block of numbers from `low` that differ in their last digits only, all of the same length.
        size = 1
        while low % (10 * size) == 0 and low + 10 * size - 1 <= high and low >= 10 * size:
            size *= 10
        head, n_free = low // size, len(str(size)) - 1
        last = min(head // 10 * 10 + 9, (high + 1) // size - 1)
        digits = str(head)
        prefix = f'"{digits[:-1]}" ' if digits[:-1] else ""
        choice = f"[{digits[-1]}-{last % 10}]" if last > head else f'"{digits[-1]}"'
        choice = f'"{digits}"' if last == head else prefix + choice
        found.append(choice + (f" [0-9]{{{n_free}}}" if n_free else ""))
        low = (last + 1) * size
    return found
