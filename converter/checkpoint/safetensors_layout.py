"""Lay out safetensors files before any is written: shards, headers, offsets and sizes.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tritgguf.converter.checkpoint.safetensors_reader import INDEX, SINGLE
from tritgguf.converter.core.dtypes import ITEM_BYTES

HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One safetensors file and its tensors, in the order of their data."""

    file_name: str
    entries: tuple[Entry, ...]

    @cached_property
    def header(self) -> bytes:
        """The bytes before the first tensor's data."""
        content: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry in self.entries:
            span = [end, end + entry.n_bytes]
            content[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
            end += entry.n_bytes
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """The offset of each tensor's data in the file, in bytes."""
        found, end = {}, len(self.header)
        for entry in self.entries:
            found[entry.name] = end
            end += entry.n_bytes
        return found

    @property
    def file_bytes(self) -> int:
        return len(self.header) + sum(entry.n_bytes for entry in self.entries)


def shards(groups: Iterable[Sequence[Entry]], most_bytes: int) -> tuple[Shard, ...]:
    """Distribute groups of tensors over files, in order.

    A group stays in one file. A file holds at most `most_bytes` of tensors, or one group that is larger.
    """
    files: list[list[Entry]] = [[]]
    used = 0
    for group in groups:
        n_bytes = sum(entry.n_bytes for entry in group)
        if files[-1] and used + n_bytes > most_bytes:
            files.append([])
            used = 0
        files[-1] += group
        used += n_bytes
    if len(files) == 1:
        return (Shard(SINGLE, tuple(files[0])),)
    names = (f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1))
    return tuple(Shard(name, tuple(entries)) for name, entries in zip(names, files, strict=True))


def index_file(files: Sequence[Shard]) -> tuple[str, str] | None:
    """Return name and text of the index file, or None if there is only one file."""
    if len(files) == 1:
        return None
    weight_map = {entry.name: shard.file_name for shard in files for entry in shard.entries}
    total = sum(entry.n_bytes for shard in files for entry in shard.entries)
    return INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
