"""Read weights that are spread over shards, with an index that tells which shard holds which tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tritgguf.converter.checkpoint.stored_tensor import StoredTensor, StoredTensors
from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.errors import SourceError


def read_shards(index: Path, read_file: Callable[[Path], StoredTensors]) -> dict[str, StoredTensor]:
    """Return the tensors of all shards that an index names; raise SourceError where the two contradict each other."""
    weight_map = _read_index(index)
    shards = {name: read_file(_shard_path(index, name)) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise SourceError(
                f"{index.name} says that {shard} holds {tensor}, but it doesn't: fetch the checkpoint again"
            )
    tensors: dict[str, StoredTensor] = {}
    for shard, content in shards.items():
        for name, tensor_in_shard in content.items():
            if name in tensors:
                raise SourceError(f"{shard} and {tensors[name].file.name} both hold {name}: fetch the checkpoint again")
            tensors[name] = tensor_in_shard
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_object(path, SourceError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{path.name} has no weight_map: fetch the checkpoint again")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise SourceError(f"{path.name}: weight_map must map names to file names")
    return weight_map


def _shard_path(index: Path, name: str) -> Path:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise SourceError(
            f"{index.name} names the shard {name!r}, which lies outside the folder; expected a plain file name"
        )
    path = index.parent / name
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        found = False
    if not found:
        raise SourceError(f"{index.name} names the shard {name}, which isn't in the folder: fetch the missing file")
    return path
