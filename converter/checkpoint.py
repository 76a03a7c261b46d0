"""Open a model folder: its config.json, and its weights where it has some."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritgguf.converter import safetensors_files
from tritgguf.converter.errors import SourceError
from tritgguf.converter.source import read_source
from tritgguf.converter.tensors import SourceTensor

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "consolidated.00.pth")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and how its weights lie; without weights (`tensors` None) it can only be planned."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor] | None
    source: str | None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face folder; raise SourceError or UnsupportedError where it isn't one that can be read."""
    config = read_config_json(path)
    if safetensors_files.matches(path):
        source, tensors = read_source(config, safetensors_files.read_tensors(path))
        return Checkpoint(path, config, tensors, source)
    _refuse_other_weights(path)
    return Checkpoint(path, config, None, None)


def _require_folder(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise SourceError(f"{path} doesn't exist; expected a Hugging Face model folder with config.json")
    with path.open("rb") as file:
        magic = file.read(4)
    if path.name in PICKLES or magic[:2] == b"PK" or magic[:1] == b"\x80":
        raise SourceError(
            f"{path} is a PyTorch pickle, which can run code when loaded; expected a model folder with safetensors "
            "files: save the model with save_pretrained(safe_serialization=True)"
        )
    if path.suffix == ".safetensors":
        raise SourceError(f"{path} is one file of a model; give the folder it lies in, with its config.json")
    raise SourceError(f"{path} is a file; expected a Hugging Face model folder with config.json")


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return config.json; raise SourceError where the folder isn't one of a model."""
    _require_folder(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise SourceError(f"{folder} has no config.json; expected a Hugging Face model folder")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"config.json can't be read: {error}") from error
    if not isinstance(config, dict):
        raise SourceError("config.json isn't a JSON object")
    return config


def _refuse_other_weights(folder: Path) -> None:
    """Stop where the folder has weights under names that aren't read, so that none are overlooked."""
    for name in PICKLES:
        if (folder / name).exists():
            raise SourceError(
                f"{folder} holds its weights in {name}, a PyTorch pickle; expected model.safetensors: "
                "save the model with save_pretrained(safe_serialization=True)"
            )
    strays = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".gguf"))
    if strays:
        raise SourceError(
            f"{folder} holds {strays[0]}, but neither {safetensors_files.SINGLE} nor {safetensors_files.INDEX}: "
            "fetch the index, or rename a single file"
        )
