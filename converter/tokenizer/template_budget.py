"""What rendering a chat template may cost: a template is a program from a file, which can loop or grow without end.

One currency counts both time and memory: a step of the template, an item of a list, or 16 characters of a text that it
makes. The count is the same on every machine and in every thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar

from jinja2 import TemplateError
from jinja2.utils import Namespace

BASE_UNITS = 2_000_000
UNITS_PER_CHARACTER = 20  # of the conversation; llama.cpp's collection of templates spends up to 6
UNITS_PER_PAIR = 100  # of messages: some templates look through all of them for each, Gemma 4 for 18 units
CHARACTERS_PER_UNIT = 16
UNITS_PER_ITEM = 2
UNITS_PER_CALL = 5
MAX_BITS = 10_000  # of a number
_ITEM = CHARACTERS_PER_UNIT  # quotes, a comma, a space; and what looking at an item costs
MAX_SOURCE = 200_000  # characters of a template: real ones have some ten thousand; compiling takes seconds


class TooMuchWorkError(TemplateError):
    """The template does more than rendering a conversation takes."""


class Budget:
    """The units that are left for one rendering."""

    def __init__(self, messages: Sequence[object]) -> None:
        self.left = BASE_UNITS + UNITS_PER_CHARACTER * _characters(messages) + UNITS_PER_PAIR * len(messages) ** 2

    def spend(self, units: int) -> None:
        """Take `units`; raise TooMuchWorkError where fewer are left."""
        self.left -= units
        if self.left < 0:
            raise TooMuchWorkError("it does too much work for this conversation; use another chat template or file")

    def keep(self, value: object) -> None:
        """Pay for a value that the template made: for all that its text would show, counted as often as shown."""
        if isinstance(value, str):
            self.spend(1 + len(value) // CHARACTERS_PER_UNIT)
            return
        todo = [value]
        while todo:
            item = todo.pop()
            self.spend(1 if not isinstance(item, (str, bytes)) else 1 + len(item) // CHARACTERS_PER_UNIT)
            if isinstance(item, int):
                require_small(item.bit_length())
            elif isinstance(item, Namespace) and item is not value:  # it could grow after its value was paid for
                raise TooMuchWorkError("it puts a namespace into another value")
            else:
                todo += self._parts(item)

    def _parts(self, item: object) -> Iterable[object]:
        if isinstance(item, (list, tuple, set, frozenset)):
            parts: Iterable[object] = item
        elif isinstance(item, dict):
            parts = [*item.keys(), *item.values()]
        elif isinstance(item, Namespace):
            parts = list(object.__getattribute__(item, "__dict__").values())  # one dictionary of its values
        else:
            return ()
        self.spend(UNITS_PER_ITEM * len(item) if isinstance(item, Sized) else 0)
        return parts

    def look_at(self, value: object) -> None:
        """Pay for reading a value once, without what its items hold."""
        if isinstance(value, Sized) and not isinstance(value, Namespace):
            self.spend(len(value) // (CHARACTERS_PER_UNIT if isinstance(value, (str, bytes)) else 1))

    def metered(self, items: Iterator[object]) -> Iterator[object]:
        for item in items:
            self.spend(1)
            yield item


_current: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget_for(messages: Sequence[object]) -> Iterator[None]:
    """Within the block, a template may spend what these messages need."""
    token = _current.set(Budget(messages))
    try:
        yield
    finally:
        _current.reset(token)


def budget() -> Budget:
    """Return the budget of this rendering."""
    return _current.get()


def _characters(value: object) -> int:
    """Return how many characters the texts in JSON-like data have together."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, Mapping) else value
    return sum(map(_characters, parts)) if isinstance(parts, Iterable) else 1


def require_small(bits: float) -> None:
    """Raise TooMuchWorkError for a number that has too many bits."""
    if bits > MAX_BITS:
        raise TooMuchWorkError("it computes with numbers of thousands of digits")


def _length(value: object) -> int:
    """Return how long a text made of `value` can be, where a number is a width."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (int, float)):
        return min(abs(int(value)), 1 << 60) if value == value and abs(value) != float("inf") else 0
    parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    return sum(map(_length, parts)) + _ITEM * len(parts) if isinstance(parts, (list, tuple)) else 4 * _ITEM


def product_length(owner: object, arguments: Iterable[object]) -> int:
    """Return a bound for functions whose result grows with a number or with a text for each character."""
    return (_length(owner) + 1) * (sum(map(_length, arguments)) + 1)


def replaced_length(text: object, arguments: Iterable[object]) -> int:
    old, new, *_ = [*arguments, "", ""]
    if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
        return product_length(str(text), (str(old), str(new)))
    return len(text) + text.count(old) * len(new)


def joined_length(separator: object, items: object) -> int:
    count = len(items) if isinstance(items, Sized) else 0
    return _length(items) + count * _length(separator)


def formatted_length(pattern: object, arguments: Iterable[object]) -> int:
    """Return a bound for `%` and str.format: each field may show every argument, as wide as any number says."""
    if not isinstance(pattern, (str, bytes)):
        return 0
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    widths = sum(int(number[:18]) for number in re.findall(r"\d+", text))
    fields = text.count("%") + text.count("{")
    return len(text) + widths + fields * sum(map(_length, arguments))
