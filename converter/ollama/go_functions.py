"""What Go's template functions do with values: strings, numbers, booleans, lists, maps and structs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tritgguf.converter.ollama.go_lexer import GoTemplateError

NO_VALUE = "<no value>"


class Record(dict[str, Any]):
    """A Go struct: a field that it doesn't have is an error, where a map gives no value."""


def truth(value: object) -> bool:
    """Go's truth: false, 0, nil, and empty strings, lists and maps are false; structs are true."""
    return isinstance(value, Record) or bool(value)


def printed(value: object) -> str:
    """Return what an action with that value writes."""
    match value:
        case None:
            return NO_VALUE
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
        case list():
            return f"[{' '.join(map(printed, value))}]"
    raise GoTemplateError(f"the Go template writes a {type(value).__name__}, which isn't known here")


def field_of(value: object, name: str) -> object:
    """Return a field of a struct, or a map's entry: no value where it has none."""
    if isinstance(value, Record):
        if name not in value:
            raise GoTemplateError(f"the Go template asks for .{name}; a message has {', '.join(value)}")
        return value[name]
    if isinstance(value, Mapping):
        return value.get(name)
    raise GoTemplateError(f"the Go template asks for .{name} of {printed(value)!r}, which has no fields")


def _kind(value: object) -> type:
    if type(value) not in (bool, int, str):
        raise TypeError(f"a {type(value).__name__} can't be compared")
    return type(value)


def _eq(first: object, *others: object) -> bool:
    if not others:
        raise TypeError("missing argument for comparison")
    for other in others:
        if first is None or other is None:
            if first is other:
                return True
        elif _kind(first) is not _kind(other):
            raise TypeError("incompatible types for comparison")
        elif first == other:
            return True
    return False


def _less(first: object, second: object) -> bool:
    match first, second:
        case (bool(), _) | (_, bool()):
            pass
        case (str(), str()):
            return first < second
        case (int(), int()):
            return first < second
    raise TypeError("incompatible types for comparison")


def _bytes_or_list(value: object) -> bytes | list[Any]:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return value
    raise TypeError(f"a {type(value).__name__} has no elements here")


def _len(value: object) -> int:
    return len(value) if isinstance(value, Mapping) else len(_bytes_or_list(value))


def _position(position: object, end: int) -> int:
    if type(position) is not int or not 0 <= position <= end:
        raise TypeError(f"index {position!r} out of range")
    return position


def _index(value: object, *keys: object) -> object:
    for key in keys:
        if isinstance(value, Mapping) and not isinstance(value, Record):
            value = value.get(key)
        else:
            elements = _bytes_or_list(value)
            value = elements[_position(key, len(elements) - 1)]
    return value


def _slice(value: object, *bounds: object) -> object:
    elements = _bytes_or_list(value)
    start = _position(bounds[0], len(elements)) if bounds else 0
    end = _position(bounds[1], len(elements)) if len(bounds) > 1 else len(elements)
    if len(bounds) > 2 or start > end:
        raise TypeError("slice bounds out of range")
    part = elements[start:end]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else part


def _print(*values: object) -> str:
    """Go puts a space between operands when neither is a string."""
    text = ""
    for number, value in enumerate(values):
        apart = number and not isinstance(value, str) and not isinstance(values[number - 1], str)
        text += (" " if apart else "") + ("<nil>" if value is None else printed(value))
    return text


def _println(*values: object) -> str:
    return " ".join("<nil>" if value is None else printed(value) for value in values) + "\n"


def _json(value: object) -> str:
    """Go's encoder escapes HTML's characters and two line separators, and leaves other letters as they are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=not isinstance(value, Record))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


FUNCTIONS: dict[str, Callable[..., object]] = {
    "not": lambda value: not truth(value),
    "eq": _eq,
    "ne": lambda first, second: not _eq(first, second),
    "lt": _less,
    "le": lambda first, second: not _less(second, first),
    "gt": lambda first, second: _less(second, first),
    "ge": lambda first, second: not _less(first, second),
    "len": _len,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": _println,
    "json": _json,
}
