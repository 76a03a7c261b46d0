"""Read a model folder's config.json, as transformers writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.errors import SourceError

ConfigJson = Mapping[str, Any]
FILE = "config.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")  # how the names of files with weights end


def _require_folder(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise SourceError(f"{path} doesn't exist; expected a Hugging Face model folder with config.json")
    if path.suffix in WEIGHTS:
        raise SourceError(f"{path} is one file of a model; expected the folder that contains it and config.json")
    raise SourceError(f"{path} is a file; expected a Hugging Face model folder with config.json")


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return config.json as a dict; raise SourceError if the folder has none, or it isn't a JSON object."""
    _require_folder(folder)
    path = folder / FILE
    if not path.is_file():
        raise SourceError(f"{folder} has no config.json; expected a Hugging Face model folder")
    return read_object(path, SourceError)


def named_classes(config: ConfigJson) -> list[str]:
    """Return the classes of transformers that config.json names; none where `architectures` isn't a list of names."""
    named = config.get("architectures")
    if not isinstance(named, list):
        return []
    return named if all(isinstance(name, str) and name.isidentifier() for name in named) else []
