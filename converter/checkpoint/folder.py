"""Open a model folder: its config.json, and its weights if it has any."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritgguf.converter.checkpoint.config_json import read_config_json
from tritgguf.converter.checkpoint.fake_quantizer import refuse_latents
from tritgguf.converter.checkpoint.header_files import only_described
from tritgguf.converter.checkpoint.packing import find_packing, read_packing
from tritgguf.converter.checkpoint.safetensors_reader import INDEX, SINGLE
from tritgguf.converter.checkpoint.weights import read_weights
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder: its config.json, its tensors and the name of their packing; None where it holds no weights.

    `described` are the tensors as they are stored, where only their headers are here: then `tensors` is None too.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor] | None
    packing: str | None
    described: Mapping[str, SourceTensor] | None = None


def open_checkpoint(path: Path, linear: Container[str]) -> Checkpoint:
    """Open a Hugging Face folder whose linear layers' tensors have the names `linear`.

    Raises SourceError or UnsupportedError if it can't be read.
    """
    config = read_config_json(path)
    _refuse_adapters(path)
    stored = read_weights(path)
    if stored is None:
        _refuse_other_weights(path)
        return Checkpoint(path, config, None, None)
    if only_described(stored):
        return Checkpoint(path, config, None, find_packing(config, stored).name, stored)
    packing, tensors = read_packing(config, stored, linear)
    refuse_latents(path, tensors, linear)
    return Checkpoint(path, config, tensors, packing)


def _refuse_adapters(folder: Path) -> None:
    """Raise SourceError if there is an adapter beside the model: transformers would apply it, this package doesn't."""
    for name in ADAPTERS:
        if (folder / name).exists():
            raise SourceError(
                f"{folder} holds an adapter ({name}), which isn't read here: merge it with --lora, from a folder of "
                "its own, or with peft's merge_and_unload(), or move the adapter's files away to leave it out"
            )


def _refuse_other_weights(folder: Path) -> None:
    """Raise SourceError if the folder has weights in files that aren't read, so that they aren't ignored silently."""
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".gguf"))
    if others:
        raise SourceError(
            f"{folder} holds {others[0]}, but neither {SINGLE} nor {INDEX}: fetch the index, or rename a single file"
        )
