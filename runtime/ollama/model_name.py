"""Which names Ollama takes for a model: https://github.com/ollama/ollama/blob/main/types/model/name.go"""

from __future__ import annotations

import re

from tritgguf.converter.errors import OllamaError

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAMESPACE = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"
_HOST = r"(?:[A-Za-z]+://)?[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"
_NAME = re.compile(rf"(?:(?:{_HOST}/)?{_NAMESPACE}/)?{_PART}(?::{_PART})?")


def require_model_name(name: str) -> None:
    """Raise OllamaError if Ollama would refuse the name.

    >>> require_model_name("me/my-model:1b")
    """
    if not _NAME.fullmatch(name):
        raise OllamaError(
            f"invalid model name {name!r}; expected MODEL, MODEL:TAG or NAMESPACE/MODEL:TAG, each of ASCII letters, "
            "digits, '_', '-' and '.', beginning with a letter, a digit or '_', and none over 80 characters"
        )
