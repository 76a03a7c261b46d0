"""Which of a repository's files a model needs; the others are never fetched."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.names import ModelName, RepositoryName

Prefer: TypeAlias = Literal["checkpoint", "gguf"]

CONFIG = "config.json"
# Beside the weights: what says how the model is built, its tokenizer and chat template, and what its authors say of it.
# Python files are read and copied as text, never run; an adapter's config is why a folder is refused.
SMALL = (
    CONFIG, "generation_config.json", "adapter_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja",
    "README.md", "LICENSE*", "NOTICE*", "*.py",
)  # fmt: skip
# Where there is no tokenizer.json, `quantize` copies them.
VOCABULARY = ("vocab.json", "vocab.txt", "merges.txt")
# A single file or the index of several, in the order in which transformers looks for them.
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[/_.-])(mmproj|imatrix)", re.IGNORECASE)  # GGUF files beside a model, which are none
_SHOWN = 12


@dataclass(frozen=True)
class Choice:
    """The files of a checkpoint, or of one GGUF model.

    `files` are fetched first. `index`, one of them, tells which files hold the weights; None where `files` are all.
    `main` is the GGUF file, or the first of its parts; None for a checkpoint.
    """

    files: tuple[str, ...]
    index: str | None = None
    main: str | None = None


def choose(name: ModelName, files: Collection[str], prefer: Prefer) -> Choice:
    """Return the files that a name asks for, of a repository's `files`; raise HubError where it has no such model."""
    models = _gguf_models(files)
    if name.file is not None:
        return _gguf(_named(name, name.file, models))
    weights = _weights(files) if CONFIG in files else None
    if prefer == "gguf" or (weights is None and models):
        return _gguf(_only(name, models, has_weights=weights is not None))
    if weights is None:
        raise HubError(_no_model(name, files))
    small = small_files(files)
    return Choice((*small, weights), index=weights) if weights.endswith(".json") else Choice((*small, weights))


def small_files(files: Collection[str]) -> tuple[str, ...]:
    """Return the files that a checkpoint needs beside its weights."""
    patterns = SMALL if "tokenizer.json" in files else (*SMALL, *VOCABULARY)
    return tuple(
        file
        for file in sorted(files)
        if any(file.count("/") == pattern.count("/") and fnmatch.fnmatchcase(file, pattern) for pattern in patterns)
    )


def shards(name: RepositoryName, index: str, text: str, files: Collection[str]) -> tuple[str, ...]:
    """Return the files with weights that an index names; raise HubError where the repository lacks one."""
    try:
        weight_map = json.loads(text)["weight_map"]
        named = sorted(set(weight_map.values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise HubError(
            f"{name}: {index} has no weight_map; the repository is damaged, try another --revision"
        ) from None
    missing = [shard for shard in named if shard not in files]
    if missing or not named:
        what = str(missing[0]) if missing else "no file"
        raise HubError(
            f"{name}: {index} names {what:.200}, which the repository doesn't have; try another --revision, or ask its "
            "authors"
        )
    return tuple(named)


def _weights(files: Collection[str]) -> str | None:
    return next((file for pair in WEIGHTS for file in pair if file in files), None)


def _gguf_models(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the GGUF files, all parts of each, by the first part's name."""
    models: dict[str, tuple[str, ...]] = {}
    parts: dict[tuple[str, str], list[str]] = {}
    for file in sorted(file for file in files if file.lower().endswith(".gguf")):
        if match := _PART.fullmatch(file):
            parts.setdefault((match["stem"], match["count"]), []).append(file)
        else:
            models[file] = (file,)
    return models | {files[0]: tuple(files) for files in parts.values()}


def _gguf(parts: tuple[str, ...]) -> Choice:
    return Choice(parts, main=parts[0])


def _named(name: ModelName, wanted: str, models: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the parts of the one GGUF model of that name, or that has the text in its name."""
    for parts in models.values():
        if wanted in parts:
            return parts
    text = re.escape(wanted)
    for pattern in (rf"(?<![A-Za-z0-9_]){text}(?![A-Za-z0-9_])", text):
        found = [first for first in models if re.search(pattern, first, re.IGNORECASE) and not _NO_MODEL.search(first)]
        if len(found) == 1:
            return models[found[0]]
        if found:
            raise HubError(
                f"{name}: {len(found)} GGUF files have {wanted} in their names: name one{listed(name, found)}"
            )
    if not models:
        raise HubError(f"{name.repo} holds no GGUF file{at(name)}, so there is no {wanted} in it")
    raise HubError(f"{name.repo} has no GGUF file {wanted}{at(name)}; name one that it has{listed(name, models)}")


def _only(name: ModelName, models: Mapping[str, tuple[str, ...]], *, has_weights: bool) -> tuple[str, ...]:
    candidates = {first: parts for first, parts in models.items() if not _NO_MODEL.search(first)} or models
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        raise HubError(f"{name.repo} holds {len(candidates)} GGUF files: name one{listed(name, candidates)}")
    remedy = f"make one of its weights: tritgguf convert {name} OUT.gguf" if has_weights else "name another repository"
    raise HubError(f"{name.repo} holds no GGUF file{at(name)}; {remedy}")


def _no_model(name: ModelName, files: Collection[str]) -> str:
    if "adapter_config.json" in files:
        return f"{name.repo} is an adapter, not a model: name its base model, and the adapter's folder with --lora"
    lacks = "weights in safetensors or PyTorch files, and no GGUF file" if CONFIG in files else "config.json"
    found = ", ".join(sorted(files)[:_SHOWN]) or "nothing"
    return f"{name.repo} holds no model that is read here{at(name)}: it has no {lacks}; it holds {found}"


def at(name: RepositoryName) -> str:
    """Return the revision for a message, where the name has one."""
    return f" at {name.revision}" if name.revision else ""


def listed(name: RepositoryName, files: Iterable[str]) -> str:
    """Return the files for a message, each as it is typed, where they aren't too many."""
    plain = replace(name, file=None)
    found = sorted(files)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ": " + ", ".join(f"{plain}:{file}" for file in found[:_SHOWN]) + more
