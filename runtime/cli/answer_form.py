"""Reads what an answer must look like: a JSON schema or a grammar in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tritgguf.converter.errors import EngineError


def answer_form(json_schema: Path | None, grammar: Path | None) -> dict[str, Any]:
    """Return the settings of a generation that the files stand for; EngineError if one can't be read."""
    if json_schema is not None and grammar is not None:
        raise EngineError("--json-schema and --grammar exclude each other: give one of them")
    if grammar is not None:
        return {"grammar": _text(grammar)}
    if json_schema is None:
        return {}
    try:
        return {"json_schema": json.loads(_text(json_schema))}
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{json_schema}: no JSON schema ({error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise EngineError(f"{path}: can't be read ({reason})") from error
