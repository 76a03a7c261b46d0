"""Whether the disk of an Ollama on this machine has room for a new model."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.ollama.versions import Version, parsed
from tritgguf.runtime.ollama.address import Address

# Since this version Ollama takes split files, and copies every file with llama-quantize when it creates a model.
LLAMA_SERVER: Version = (0, 30, 0)
MODELS_VARIABLE = "OLLAMA_MODELS"
# Where Ollama keeps models by default, and where its Linux service does.
_FOLDERS = (Path("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))


def space_problem(address: Address, version: str, file_bytes: int) -> str | None:
    """Return what to tell the user if creating a model of that size will probably fill the disk, else None.

    None also where nothing is known: the server is elsewhere, or its folder isn't found. At the peak the disk holds
    what was sent, llama-quantize's copy and the model's own file.
    """
    room = _free_space() if address.is_loopback else None
    copies = 3 if parsed(version) >= LLAMA_SERVER else 1
    if room is None or room[1] >= copies * file_bytes:
        return None
    folder, free = room
    return (
        f"Ollama needs about {format_size(copies * file_bytes)} for a while to create the model, {copies} times the "
        f"file's size, but {folder} has {format_size(free)} free; if it keeps its models there, make room first"
    )


def _free_space() -> tuple[Path, int] | None:
    """Return the folder of Ollama's models and its free bytes; of several, the one with the most."""
    named = os.environ.get(MODELS_VARIABLE, "").strip().strip("\"'")
    found = []
    for folder in (Path(named),) if named else _FOLDERS:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home folder
            path = folder.expanduser()
            found.append((path, shutil.disk_usage(path).free))
    return max(found, key=lambda room: room[1], default=None)
