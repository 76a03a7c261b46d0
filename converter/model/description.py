"""Keys that say what a model is: base name, size label, version, the models and data sets that it comes from.

They are what llama.cpp's converter writes, by the heuristics of the package gguf: first README.md's front matter, then
`_name_or_path` in config.json, then the folder's name
(https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/metadata.py). Only `general.name` is left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gguf import Keys
from gguf import Metadata as GgufMetadata
from gguf.utility import size_label

from tritgguf.converter.gguf_io.metadata import Metadata, string, strings, uint32
from tritgguf.converter.model.architecture import TensorSpec

EXPERTS = "_exps."  # in the names of tensors of experts
LONGEST = 5000  # characters of a text that is taken apart
_TEXTS = {
    "author": Keys.General.AUTHOR,
    "version": Keys.General.VERSION,
    "organization": Keys.General.ORGANIZATION,
    "finetune": Keys.General.FINETUNE,
    "basename": Keys.General.BASENAME,
    "description": Keys.General.DESCRIPTION,
    "size_label": Keys.General.SIZE_LABEL,
    "source_url": Keys.General.SOURCE_URL,
    "source_doi": Keys.General.SOURCE_DOI,
    "source_uuid": Keys.General.SOURCE_UUID,
    "source_repo_url": Keys.General.SOURCE_REPO_URL,
}
_LISTS = {"tags": Keys.General.TAGS, "languages": Keys.General.LANGUAGES}
_PARENTS = {
    "base_models": (Keys.General.BASE_MODEL_COUNT, "general.base_model.{}.{}"),
    "datasets": (Keys.General.DATASET_COUNT, "general.dataset.{}.{}"),
}
_PARENT_TEXTS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


class Parameters(NamedTuple):
    """A model's numbers: of all parameters, of those outside experts, of one expert in all layers, and of experts."""

    total: int
    shared: int
    of_an_expert: int = 0
    n_experts: int = 0


def counted(specs: Sequence[TensorSpec]) -> Parameters:
    """Count the parameters of a model's tensors, as gguf's writer does."""
    total = sum(math.prod(spec.shape) for spec in specs)
    experts = [spec.shape for spec in specs if EXPERTS in spec.name]
    if not experts:
        return Parameters(total, total)
    in_experts = sum(math.prod(shape) for shape in experts)
    of_an_expert = sum(math.prod(shape[1:]) for shape in experts)
    return Parameters(total, total - in_experts, of_an_expert, sum(shape[0] for shape in experts) // len(experts))


def description(card: Mapping[str, Any], config: Mapping[str, Any], name: str, parameters: Parameters) -> Metadata:
    """Return the keys, of README.md's front matter, config.json, the model's name and its numbers of parameters.

    Texts that are no texts, or too long, are left out: they come with the model, and only describe it.
    """
    origin = config.get("_name_or_path")
    found = GgufMetadata.apply_metadata_heuristic(
        GgufMetadata(),
        {key: _usable(value) for key, value in card.items() if isinstance(key, str) and _usable(value) is not None},
        {"_name_or_path": origin} if isinstance(origin, str) and _usable(origin) else {},
        Path(name),
        parameters.total,
    )
    found.size_label = found.size_label or size_label(*parameters)
    keys: Metadata = {}
    for attribute, key in _TEXTS.items():
        if (text := _text(getattr(found, attribute))) is not None:
            keys[key] = string(text)
    for attribute, key in _LISTS.items():
        if texts := [item for item in getattr(found, attribute) or () if isinstance(item, str)]:
            keys[key] = strings(texts)
    for attribute, (count_key, key) in _PARENTS.items():
        keys |= _parents(getattr(found, attribute) or (), count_key, key)
    return keys


def _parents(parents: Sequence[Mapping[str, Any]], count_key: str, key: str) -> Metadata:
    keys: Metadata = {count_key: uint32(len(parents))} if parents else {}
    for number, parent in enumerate(parents):
        for field in _PARENT_TEXTS:
            if (text := _text(parent.get(field))) is not None:
                keys[key.format(number, field)] = string(text)
    return keys


def _text(value: object) -> str | None:
    """Return a text or a number as text, None for anything else."""
    usable = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return str(value) if usable and str(value) else None


def _usable(value: object) -> object:
    """Return what gguf's heuristics can take of a value: a text, a number, a list of texts or mappings; else None."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict) or (isinstance(item, str) and len(item) <= LONGEST)]
    if isinstance(value, str):
        return value if len(value) <= LONGEST else None
    return value if isinstance(value, (int, float)) else None
