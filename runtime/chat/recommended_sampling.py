"""The sampling that a model's authors recommend, from the file's general.sampling keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritgguf.converter.errors import EngineError
from tritgguf.converter.ollama.modelfile import SAMPLING, sampling_parameters
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.sampling import Sampling

_KEYS = {name: key for key, name in SAMPLING.items()}  # Ollama's names are those of Sampling's fields


def complete_sampling(model: Model, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `asked`, and those that the file recommends for the others; `tritgguf ollama` reads the same.

    EngineError if one that is needed from the file is out of range.
    """
    settings: dict[str, Any] = dict(asked)
    for name, value in sampling_parameters(model.header).items():
        if name in asked:
            continue
        if name == "top_k" and isinstance(value, int):
            value = max(0, value)  # a negative number turns it off in llama.cpp
        try:
            Sampling(**{name: value})  # type: ignore[arg-type]
        except EngineError as error:
            option = "--" + name.replace("_", "-")
            raise EngineError(f"{model.path}: {_KEYS[name]}: {error}; choose the value with {option}") from error
        settings[name] = value
    return settings
