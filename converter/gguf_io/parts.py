"""The names and keys of a GGUF model that is split into several files, as llama.cpp's gguf-split names them.

The files are called `NAME-00001-of-00003.gguf`. The first has all of the model's keys, each has `split.no`,
`split.count` and `split.tensors.count`. A program that opens the first finds the others by their names.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguf import GGUFValueType, Keys

from tritgguf.converter.gguf_io.metadata import Metadata, Value

NUMBER, COUNT, TENSOR_COUNT = (
    Keys.Split.LLM_KV_SPLIT_NO,
    Keys.Split.LLM_KV_SPLIT_COUNT,
    Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT,
)
KEYS = (NUMBER, COUNT, TENSOR_COUNT)
MOST_PARTS = 1 << 16  # split.count is a 16-bit number
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_paths(out: Path, n_parts: int) -> list[Path]:
    """Return the paths of the parts that `out` is split into; one part is `out` itself."""
    if n_parts == 1:
        return [out]
    stem = out.name.removesuffix(".gguf")
    return [out.with_name(f"{stem}-{number:05d}-of-{n_parts:05d}.gguf") for number in range(1, n_parts + 1)]


def sibling_paths(part: Path, n_parts: int) -> list[Path] | None:
    """Return all parts of the model that `part` is one of, in order; None where its name isn't a part's."""
    match = _NAME.fullmatch(part.name)
    if match is None or int(match["count"]) != n_parts or not 1 <= int(match["number"]) <= n_parts:
        return None
    return part_paths(part.with_name(match["stem"] + ".gguf"), n_parts)


def parts_named(path: Path) -> list[Path]:
    """Return all parts of the model that the file is one of by its name, or the file alone."""
    match = _NAME.fullmatch(path.name)
    siblings = sibling_paths(path, int(match["count"])) if match else None
    return siblings or [path]


def split_keys(number: int, n_parts: int, n_tensors: int) -> Metadata:
    """Return the keys of part `number`, counted from 0."""
    return {
        NUMBER: Value(number, GGUFValueType.UINT16),
        COUNT: Value(n_parts, GGUFValueType.UINT16),
        TENSOR_COUNT: Value(n_tensors, GGUFValueType.INT32),
    }
