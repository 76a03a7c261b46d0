"""Which file of a dataset is read: the one that is named, or the only one that there is to train on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from tritgguf.converter.calibration.documents import is_readable
from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.names import DatasetName
from tritgguf.runtime.hub.selection import at, listed

KINDS = ".txt, .md, .jsonl, .json, each also with .gz, and .parquet"
# Beside the data: what people read, and what describes the data.
_NO_DATA = re.compile(
    r"(^|/)(\.|(readme|licen[cs]e|notice|changelog|contributing|citation|requirements)(?=[._]|$))"
    r"|(^|/)(dataset_infos?|dataset_dict|state)\.json$",
    re.IGNORECASE,
)
_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)
_NUMBER = re.compile(r"\d{5,}|^[\d_]{3,}(?=\.)")  # of a shard, in its name: train-00000-of-00005, 0000.parquet
_SHOWN = 12


def choose_text(name: DatasetName, files: Collection[str]) -> tuple[str, int]:
    """Return the file to read, the first of its shards where there are several, and how many there are.

    That is `name.file`, or of the files that have it in their names, or of all, the only one, or the only one of a
    train split. Raises HubError, which lists them, where that isn't one.
    """
    if name.file in files:
        return str(name.file), 1
    readable = [file for file in sorted(files) if is_readable(file) and not _NO_DATA.search(file)]
    if not readable:
        raise HubError(_no_text(name, files))
    found = readable if name.file is None else _with(name.file, readable)
    if not found:
        raise HubError(f"{name.path} has no file {name.file}{at(name)}; name one that it has{listed(name, readable)}")
    for candidates in (found, [file for file in found if _TRAIN.search(file)]):
        sharded = _by_shards(candidates)
        if len(sharded) == 1:
            return sharded[0][0], len(sharded[0])
    firsts = [shards[0] for shards in _by_shards(found)]
    having = "" if name.file is None else f" with {name.file} in their names"
    raise HubError(f"{name.path} holds {len(firsts)} texts{having}: name one{listed(name, firsts)}")


def _with(text: str, files: Iterable[str]) -> list[str]:
    """Return the files that have a text in their names, as a word if there is one."""
    pattern = rf"(?<![A-Za-z0-9_]){re.escape(text)}(?![A-Za-z0-9_])"
    containing = [file for file in files if text.lower() in file.lower()]
    return [file for file in containing if re.search(pattern, file, re.IGNORECASE)] or containing


def _by_shards(files: Iterable[str]) -> list[list[str]]:
    """Return the files, those together whose names differ in a shard's number alone."""
    groups: dict[str, list[str]] = {}
    for file in files:
        folder, _, last = file.rpartition("/")
        groups.setdefault(f"{folder}/{_NUMBER.sub('#', last)}", []).append(file)
    return list(groups.values())


def _no_text(name: DatasetName, files: Collection[str]) -> str:
    found = ", ".join(sorted(files)[:_SHOWN]) or "nothing"
    converted = DatasetName(name.repo, "refs/convert/parquet")
    return (
        f"{name.path} holds no text that is read here{at(name)} ({KINDS}); it holds {found}; the hub may have it as "
        f"Parquet: {converted}"
    )
