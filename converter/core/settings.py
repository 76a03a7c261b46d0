"""Read the keys of a model's JSON files with their types.

JSON files come from anywhere, and Python reads NaN, Infinity and numbers of any size from them. Each method returns a
key's value as the program goes on to use it, or raises one line that names file, key, value and what is expected. As in
transformers, null means that there is no such key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from reprlib import Repr
from typing import Any

from tritgguf.converter.errors import SourceError

# A model's numbers lie far within these. Products and quotients of two of them fit a float32, which files store.
SMALLEST, LARGEST = 1e-30, 1e30
LARGEST_INTEGER = 2**31 - 1  # llama.cpp counts in int32

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Return a value of a JSON file for a message: short, on one line, however long or deep it is."""
    return _SHORT.repr(value)


def shown_key(key: str) -> str:
    """Return a key for a message: as it is, or quoted and shortened where it is no usual name."""
    return key if key.isprintable() and len(key) <= _SHORT.maxstring else shown(key)


class Settings(Mapping[str, Any]):
    """The keys of a JSON object in the file named `file`; `inside` names the object that they are in, if any."""

    def __init__(self, file: str, values: Mapping[str, Any], inside: str = "") -> None:
        self.file, self.inside = file, inside
        self._values = values

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def has(self, key: str) -> bool:
        """Whether the key is there and isn't null."""
        return self.get(key) is not None

    def name(self, key: str) -> str:
        """Return what messages call a key, such as "config.json: quantization_config.digits"."""
        key = shown_key(key)
        return f"{self.file}: {self.inside}.{key}" if self.inside else f"{self.file}: {key}"

    def wrong(self, key: str, expected: str, found: object = None) -> SourceError:
        """Return the error for a key's value, or for `found` in it."""
        return SourceError(f"{self.name(key)} must be {expected}, found {shown(self.get(key, found))}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST_INTEGER) -> int:
        """Return an integer; raise SourceError where it is none, out of range, or missing without a default."""
        value = self[key] if self.has(key) else default
        if type(value) is not int or value < least:
            expected = "a positive integer" if least == 1 else f"an integer from {least} to {most}"
            raise self.wrong(key, expected, value)
        if value > most:
            raise self.wrong(key, f"at most {most}", value)
        return value

    def number(
        self, key: str, default: float | None = None, *, least: float = SMALLEST, most: float = LARGEST
    ) -> float:
        """Return a number; raise SourceError where it is none, out of range, or missing without a default."""
        value = self[key] if self.has(key) else default
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            positive = "positive " if least > 0 else ""
            raise self.wrong(key, f"a {positive}number from {least:g} to {most:g}", value)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false; raise SourceError for anything else: the text "false" would count as true."""
        value = self[key] if self.has(key) else default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def text(self, key: str) -> str | None:
        """Return a text, None where there is no such key; raise SourceError for anything else."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> list[str] | None:
        """Return a list of texts, None where there is no such key; raise SourceError for anything else."""
        value = self.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self.wrong(key, "a list of texts")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """Return a list of `count` numbers; raise SourceError for anything else."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(key, f"a list of {count} numbers")
        items = Settings(self.file, {f"{key}[{index}]": item for index, item in enumerate(value)}, self.inside)
        return [items.number(item) for item in items]

    def object(self, key: str) -> Settings:
        """Return an object's keys, none where there is no such key; raise SourceError for anything else."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Settings(self.file, value or {}, f"{self.inside}.{key}" if self.inside else key)
