"""JSON files of a model folder, with errors that name the file and the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tritgguf.converter.core.settings import shown_key
from tritgguf.converter.errors import TritggufError

MOST_LEVELS = 64  # of nesting: what reads, prints or writes the values later recurses into them


def read_text(path: Path, error: type[TritggufError]) -> str:
    """Return a UTF-8 file's text without a byte order mark; raise `error` where it can't be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as caught:
        byte = caught.object[caught.start]
        raise error(f"{path.name} isn't UTF-8 text: byte {caught.start} is 0x{byte:02x}; fetch it again") from caught
    except OSError as caught:
        raise error(f"{path.name} can't be read: {caught.strerror}") from caught


def parse_object(text: str, name: str, error: type[TritggufError]) -> dict[str, Any]:
    """Return the JSON object that the file `name` holds; raise `error` where it is damaged or no object."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as caught:
        raise error(
            f"{name} is damaged at line {caught.lineno}, column {caught.colno}: {caught.msg}; fetch the file again"
        ) from caught
    except RecursionError as caught:
        raise error(f"{name} is nested too deeply; fetch the file again") from caught
    except ValueError as caught:  # such as a number of more digits than Python reads
        raise error(f"{name} is damaged: {caught}; fetch the file again") from caught
    if not isinstance(parsed, dict):
        raise error(f"{name} holds a JSON {type(parsed).__name__}; expected an object")
    return parsed


def read_object(path: Path, error: type[TritggufError]) -> dict[str, Any]:
    """Return the JSON object that a file holds; raise `error` where it can't be read or is nested too deeply."""
    parsed = parse_object(read_text(path, error), path.name, error)
    for key, value in parsed.items():
        if _levels(value) > MOST_LEVELS:
            raise error(
                f"{path.name}: {shown_key(key)} is nested more than {MOST_LEVELS} levels deep; fetch the file again"
            )
    return parsed


def _levels(value: object) -> int:
    """Return how many lists and objects enclose the innermost value."""
    levels, inner = 0, [value]
    while inner := [item for item in inner if isinstance(item, dict | list)]:
        levels += 1
        inner = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return levels


def read_object_if_present(path: Path, error: type[TritggufError]) -> dict[str, Any]:
    """Return the JSON object that a file holds, empty where there is no file; raise `error` where it is damaged."""
    return read_object(path, error) if path.is_file() else {}
