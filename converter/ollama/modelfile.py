"""The Modelfile that `ollama create -f` reads, and the same content as a request to Ollama's API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gguf import Keys

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.reader import GgufFile

DEFAULT_CONTEXT = 4096
QUOTES = '"""'
# The file's sampling settings, which convert copies from generation_config.json, and Ollama's names for them.
SAMPLING = {
    Keys.General.SAMPLING_TEMP: "temperature",
    Keys.General.SAMPLING_TOP_K: "top_k",
    Keys.General.SAMPLING_TOP_P: "top_p",
    Keys.General.SAMPLING_MIN_P: "min_p",
    Keys.General.SAMPLING_PENALTY_REPEAT: "repeat_penalty",
}
Parameter = int | float | tuple[str, ...]


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile's values: FROM is `source`, a file's name in its folder; None and "" leave a line out.

    `more_sources` are the names of a split file's other parts, in order.
    """

    source: str
    template: str | None
    parameters: Mapping[str, Parameter]
    system: str = ""
    license: str = ""
    more_sources: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the Modelfile's text; raise UnsupportedError if a value holds three double quotes."""
        lines = [f"FROM ./{source}" for source in self._sources()]
        if self.template is not None:
            lines.append(f"TEMPLATE {_quoted('TEMPLATE', self.template)}")
        for name, value in self.parameters.items():
            values = value if isinstance(value, tuple) else (value,)
            lines += [f"PARAMETER {name} {_stop(one) if isinstance(one, str) else one}" for one in values]
        lines += [f"{name} {_quoted(name, text)}" for name, text in self._texts() if text]
        return "\n".join(lines) + "\n"

    def request(self, model: str, *digests: str) -> dict[str, Any]:
        """Return the body of POST /api/create for files that were sent as the blobs `digests` ("sha256:" and hex)."""
        # The server reads the name as a path and refuses backslashes and colons, which are special on Windows.
        names = [re.sub(r"[\\:]", "_", source) for source in self._sources()]
        body: dict[str, Any] = {"model": model, "files": dict(zip(names, digests, strict=True))}
        if self.template is not None:
            body["template"] = self.template
        body["parameters"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.parameters.items()}
        return body | {name.lower(): text for name, text in self._texts() if text}

    def _sources(self) -> tuple[str, ...]:
        return (self.source, *self.more_sources)

    def _texts(self) -> tuple[tuple[str, str], ...]:
        return ("SYSTEM", self.system), ("LICENSE", self.license)


def _quoted(name: str, text: str) -> str:
    if QUOTES in text:
        raise UnsupportedError(
            f"the {name} text has {QUOTES} in it, which ends a text in a Modelfile; remove these quotes"
        )
    return QUOTES + text + QUOTES


def _stop(text: str) -> str:
    return _quoted("stop", text) if '"' in text or "\n" in text else f'"{text}"'


class _HasKeys(Protocol):
    def value(self, key: str) -> object: ...


def ollama_parameters(file: _HasKeys) -> dict[str, Parameter]:
    """Return the file's sampling settings for Ollama.

    Where the checkpoint gives no repeat_penalty, it is 1, none: Ollama's own default was 1.1 until 0.32.10.
    """
    return {"repeat_penalty": 1, **sampling_parameters(file)}


def sampling_parameters(file: _HasKeys) -> dict[str, Parameter]:
    """Return the file's sampling settings under Ollama's names."""
    found: dict[str, Parameter] = {}
    for key, name in SAMPLING.items():
        value = file.value(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value if isinstance(value, int) else float(str(np.float32(value)))
    return found


def context_parameter(file: GgufFile, asked: int | None) -> int:
    """Return num_ctx in tokens: `asked`, or else the trained context length, at most 4096.

    Raises UnsupportedError if `asked` is below 2 or above the trained context length.
    """
    trained = file.value(f"{file.architecture}.context_length")
    limit = trained if isinstance(trained, int) else DEFAULT_CONTEXT
    if asked is not None and not 2 <= asked <= limit:
        raise UnsupportedError(
            f"the context is {asked} tokens, but this model takes 2 to {limit}; choose another --ctx"
        )
    return asked or min(limit, DEFAULT_CONTEXT)


def license_text(file: GgufFile) -> str:
    """Return the file's licence name, identifier and link, one per line; "" if it has none."""
    keys = (Keys.General.LICENSE_NAME, Keys.General.LICENSE, Keys.General.LICENSE_LINK)
    return "\n".join(dict.fromkeys(str(file.value(key)) for key in keys if file.value(key)))
