"""The fields of a request's JSON object, each with the type that the API says; anything else is an error by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tritgguf.runtime.server.errors import RequestError

_NAMES = {str: "a text", bool: "true or false", dict: "an object", list: "a list", int: "a whole number"}


def parse_object(data: bytes) -> Fields:
    """Return the fields of a JSON object; RequestError if `data` isn't one."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise RequestError("the body's JSON is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one too
        raise RequestError(f"the body isn't valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {_kind(value)}, expected a JSON object")
    return Fields(value)


class Fields:
    """A JSON object; null counts as a missing field. `place` is its path in the body, for messages."""

    def __init__(self, values: Mapping[str, Any], place: str = "") -> None:
        self.values = values
        self.place = place

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:  # noqa: ANN401 (what JSON has)
        return self.values.get(name)

    def text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._typed(name, bool)
        return default if value is None else bool(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"{_kind(value)}, expected a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(name, f"{_kind(value)}, expected a number from {low:g} to {high:g}")
        return float(value)

    def items(self, name: str) -> list[Any] | None:
        value = self._typed(name, list)
        return None if value is None else list(value)

    def part(self, name: str) -> Fields | None:
        value = self._typed(name, dict)
        return None if value is None else Fields(value, f"{self.place}{name}.")

    def texts(self, name: str) -> list[str]:
        """Return a field that is one text or a list of them."""
        value = self.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        for item in values:
            if not isinstance(item, str):
                raise self.error(name, f"{_kind(item)}, expected a text or a list of texts")
        return list(values)

    def refuse(self, name: str, *allowed: object, why: str) -> None:
        """RequestError unless the field is missing, empty, or one of `allowed`."""
        value = self.get(name)
        if not (value is None or value == [] or value == {} or value is False or value in allowed):
            raise self.error(name, f"{_kind(value)}: {why}")

    def error(self, name: str, problem: str) -> RequestError:
        return RequestError(f"{self.place}{name} is {problem}", param=f"{self.place}{name}")

    def _typed(self, name: str, kind: type) -> Any:  # noqa: ANN401
        value = self.get(name)
        if value is not None and not isinstance(value, kind):
            raise self.error(name, f"{_kind(value)}, expected {_NAMES[kind]}")
        return value


def _kind(value: object) -> str:
    if isinstance(value, (dict, list)):
        return _NAMES[type(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number that is too long"
    return text if len(text) <= 60 else f"{text[:57]}..."
