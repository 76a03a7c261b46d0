"""Distribute the tensors over one GGUF file, or over parts of at most a given size.

The names and keys of parts are those of llama.cpp's gguf-split:
https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf import Keys

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.header import aligned, entry_bytes, header_bytes
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.gguf_io.parts import MOST_PARTS, split_keys
from tritgguf.converter.planning.file_plan import FilePart, TensorPlan


def lay_out(metadata: Metadata, tensors: Sequence[TensorPlan], max_bytes: int | None) -> tuple[FilePart, ...]:
    """Return the file as one part, or as parts of at most `max_bytes` each unless a single tensor is larger.

    Raises UnsupportedError if there would be too many parts.
    """
    entries = [tensor.entry for tensor in tensors]
    whole = FilePart(header_bytes(metadata, entries), tuple(tensors))
    if max_bytes is None or whole.file_bytes <= max_bytes:
        return (whole,)
    little: Metadata = {Keys.General.ARCHITECTURE: metadata[Keys.General.ARCHITECTURE]}
    least = len(header_bytes({**little, **split_keys(0, 0, 0)}, ()))
    first = len(whole.header) - sum(map(entry_bytes, entries)) + least - len(header_bytes(little, ()))
    groups = _grouped(tensors, first, least, max_bytes)
    if len(groups) >= MOST_PARTS:
        raise UnsupportedError(
            f"files of at most {max_bytes} bytes would be {len(groups)} parts, more than {MOST_PARTS - 1}: "
            "raise --max-shard-size"
        )
    files = []
    for number, group in enumerate(groups):
        keys = {**(little if number else metadata), **split_keys(number, len(groups), len(tensors))}
        files.append(FilePart(header_bytes(keys, [tensor.entry for tensor in group]), group))
    return tuple(files)


def _grouped(tensors: Sequence[TensorPlan], first: int, least: int, max_bytes: int) -> list[tuple[TensorPlan, ...]]:
    """Return the tensors of each part, as many as fit.

    Headers without tensor entries have `first` bytes in the first part and `least` bytes in the others.
    """
    groups: list[tuple[TensorPlan, ...]] = []
    group: tuple[TensorPlan, ...] = ()
    header, data = first, 0
    for tensor in tensors:
        header, data = header + entry_bytes(tensor.entry), data + aligned(tensor.n_bytes)
        if group and aligned(header) + data > max_bytes:
            groups.append(group)
            group, header, data = (), least + entry_bytes(tensor.entry), aligned(tensor.n_bytes)
        group = (*group, tensor)
    return [*groups, group]
