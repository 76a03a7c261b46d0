"""Ternary models that are known, by short names: the rows of catalogue.json.

What isn't known for sure is null there, and an empty cell of `tritgguf list --known`. The rows come from the models'
cards and from docs/models.md; nothing here asks the hub.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tritgguf.converter.errors import CacheError

FILE = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True)
class KnownModel:
    """A row: `model` is its name on the hub, `download_bytes` about what that fetches.

    `architecture` is the converter's name for its graph, `stored` how its weights are packed there. `options` are what
    `run` needs besides the name, `becomes` the type of its layers for an x86 CPU, `runs_on` the targets. `chat` tells
    whether it was trained to answer, `note` what else a user should know.
    """

    name: str
    model: str
    by: str
    parameters: str
    download_bytes: int | None
    licence: str | None
    architecture: str | None
    stored: str
    becomes: str
    options: str
    runs_on: tuple[str, ...]
    chat: bool
    note: str | None

    @property
    def command(self) -> str:
        """Return what to type."""
        return f"tritgguf run {self.name} {self.options}".rstrip()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "command": self.command}


@cache
def catalogue() -> dict[str, KnownModel]:
    """Return the known models by their short names, in the file's order; raise CacheError where it is damaged."""
    try:
        rows = json.loads(FILE.read_text("utf-8"))
        models = [KnownModel(**{**row, "runs_on": tuple(row["runs_on"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{FILE} is damaged ({error}); install tritgguf again") from error
    return {model.name: model for model in models}
