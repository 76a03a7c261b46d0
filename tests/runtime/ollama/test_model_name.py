"""The names that Ollama takes for a model."""

from __future__ import annotations

import pytest

from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.model_name import require_model_name


@pytest.mark.parametrize(
    "name",
    [
        *("a", "my-model", "Qwen2.5_x", "m:1b-q4.0", "me/m", "me/m:t", "host.org/me/m:t", "localhost:5000/me/m"),
        *("https://host/me/m", "_a", "a..b", "1", "m" * 80, f"{'h' * 350}/{'n' * 80}/m:{'t' * 80}"),
    ],
)
def test_valid_names(name: str) -> None:
    require_model_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "a b", "a\n", "-a", ".a", "a:", ":a", "a:b:c", "a/", "/a", "a//b", "a.b/c", "a/b/c/d", "a@b", "ü"),
        *("a:b/c", "a/:b", "a:-b", "a\x1b[0m", "m" * 81, f"m:{'t' * 81}", f"{'n' * 81}/m", f"{'h' * 351}/n/m"),
    ],
)
def test_invalid_names(name: str) -> None:
    with pytest.raises(OllamaError, match=r"invalid model name .*; expected MODEL, MODEL:TAG or NAMESPACE/MODEL:TAG"):
        require_model_name(name)
