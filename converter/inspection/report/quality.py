"""The figures that `tritgguf eval --json` prints, read for a report of one of the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.errors import SourceError

REMEDY = "write it with tritgguf eval --json"
MOST_FILES = 1000


@dataclass(frozen=True)
class Quality:
    """One file's figures; those against a base are None where eval had none. `is_this` marks the report's own file."""

    name: str
    file_bytes: int
    bits_per_weight: float
    ppl: float
    ppl_error: float
    kld_mean: float | None
    same_top1: float | None
    is_base: bool
    is_this: bool


def read_quality(path: Path, file: Path, file_bytes: int) -> list[Quality]:
    """Return the figures of all files, the base last; raise SourceError unless the GGUF file `file` is among them."""
    said = read_object(path, SourceError)
    files, base = said.get("files"), said.get("base")
    if not isinstance(files, list) or not all(isinstance(one, dict) for one in files) or len(files) > MOST_FILES:
        raise SourceError(f"{path.name} has no list of files; {REMEDY}")
    entries = [(one, False) for one in files] + ([(base, True)] if isinstance(base, dict) else [])
    found = [_quality(path, one, is_base, file, file_bytes) for one, is_base in entries]
    if not any(one.is_this for one in found):
        sizes = [one.file_bytes for one in found if one.name == file.name]
        theirs = f"{file.name} of {sizes[0]:,} bytes" if sizes else ", ".join(one.name for one in found) or "no file"
        this = f"this one has {file_bytes:,}" if sizes else f"not of {file.name}"
        raise SourceError(f"{path.name} has the figures of {theirs:.200}, {this}; evaluate the file: {REMEDY}")
    return found


def _quality(path: Path, said: Mapping[str, Any], is_base: bool, file: Path, file_bytes: int) -> Quality:
    place = said.get("path")
    if not isinstance(place, str):
        raise SourceError(f"{path.name} has a file without a path; {REMEDY}")
    name, n_bytes = PurePath(place).name, int(_number(path, said, "file_bytes"))
    return Quality(
        name=name,
        file_bytes=n_bytes,
        bits_per_weight=_number(path, said, "bits_per_weight"),
        ppl=_number(path, said, "ppl"),
        ppl_error=_number(path, said, "ppl_error"),
        kld_mean=_number(path, said, "kld_mean") if said.get("kld_mean") is not None else None,
        same_top1=_number(path, said, "same_top1") if said.get("same_top1") is not None else None,
        is_base=is_base,
        is_this=name == file.name and n_bytes == file_bytes,
    )


def _number(path: Path, said: Mapping[str, Any], key: str) -> float:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise SourceError(f"{path.name}: {key} is {value!r:.50}; expected a number: {REMEDY}")
    return float(value)
