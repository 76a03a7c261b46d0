"""Find a folder's weights, in whichever format it has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tritgguf.converter.checkpoint import header_files, pytorch_reader, safetensors_reader
from tritgguf.converter.checkpoint.config_json import WEIGHTS
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor


class WeightsFormat(NamedTuple):
    """A format of files that hold weights."""

    matches: Callable[[Path], bool]
    read_tensors: Callable[[Path], dict[str, StoredTensor]]


# In the order in which transformers looks for them; headers alone where there is nothing else.
FORMATS = (
    WeightsFormat(safetensors_reader.matches, safetensors_reader.read_tensors),
    WeightsFormat(pytorch_reader.matches, pytorch_reader.read_tensors),
    WeightsFormat(header_files.matches, header_files.read_tensors),
)


def files_with_weights(folder: Path) -> list[Path]:
    """Return the folder's safetensors files, or else its files of other formats, in order of their names."""
    for suffixes in ((".safetensors",), WEIGHTS):
        files = sorted(path for path in folder.glob("*") if path.suffix in suffixes)
        if files:
            return files
    return []


def read_weights(folder: Path) -> dict[str, StoredTensor] | None:
    """Return every tensor by name, None if the folder has no weights; raise SourceError if a file is damaged."""
    for form in FORMATS:
        if form.matches(folder):
            return form.read_tensors(folder)
    return None
