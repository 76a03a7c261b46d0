"""Compare a file's metadata with what its source requires, and tell which differences matter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gguf import Keys

from tritgguf.converter.gguf_io.metadata import Metadata, Value

# Names, licences, what a file was quantized with and so on, which don't change what llama.cpp computes.
DESCRIPTIVE = ("general.", "quantize.")
UNUSED = (Keys.Tokenizer.PAD_ID,)
# They depend on the tensors' types, which are compared separately.
FROM_TYPES = (Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION)
# Compared by what it renders, in the runtime's logits check.
TEMPLATES = "tokenizer.chat_template"

Difference = tuple[str, str, bool]  # key, message, whether it matters


def compare_metadata(expected: Metadata, found: Metadata) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the differences that change the model's output, and the other ones, one line each."""
    differences = [*_missing_or_other(expected, found), *_surplus(expected, found)]
    differences = [(key, line, matters) for key, line, matters in differences if not key.startswith(TEMPLATES)]
    wrong = tuple(line for _, line, matters in differences if matters)
    return wrong, tuple(line for _, line, matters in differences if not matters)


def _missing_or_other(expected: Metadata, found: Metadata) -> Iterator[Difference]:
    for key, value in expected.items():
        matters = key == Keys.General.ARCHITECTURE or not (key.startswith(DESCRIPTIVE) or key in UNUSED)
        if key in found:
            if not _same(value, found[key]):
                yield key, f"{key} is {_shown(found[key], value)}; expected {_shown(value, found[key])}", matters
        elif _same(value, _assumed(key, found)):
            yield key, f"{key} is missing; llama.cpp's default is {_shown(value, value)}, as expected", False
        else:
            yield key, f"{key} is missing; expected {_shown(value, value)}", matters


def _surplus(expected: Metadata, found: Metadata) -> Iterator[Difference]:
    for key, value in found.items():
        if key not in expected and key not in FROM_TYPES:
            matters = not key.startswith((*DESCRIPTIVE, "tokenizer.")) and not _same(value, _assumed(key, expected))
            yield key, f"{key} is {_shown(value, value)}; the model doesn't need this key", matters


def _assumed(key: str, metadata: Metadata) -> object:
    """Return llama.cpp's default for a missing hyperparameter, which may depend on others; None if there is none."""
    name = metadata.get(Keys.General.ARCHITECTURE)
    arch = name.data if name else ""

    def other(template: str) -> object:
        return _plain(metadata.get(template.format(arch=arch)))

    heads, width, tokens = (
        other(Keys.Attention.HEAD_COUNT),
        other(Keys.LLM.EMBEDDING_LENGTH),
        other(Keys.Tokenizer.LIST),
    )
    head_dim = width // heads if isinstance(heads, int) and isinstance(width, int) and heads else None
    assumed = {
        Keys.Attention.HEAD_COUNT_KV: heads,
        Keys.Attention.KEY_LENGTH: head_dim,
        Keys.Attention.VALUE_LENGTH: head_dim,
        Keys.Rope.DIMENSION_COUNT: other(Keys.Attention.KEY_LENGTH) or head_dim,
        Keys.Rope.FREQ_BASE: 10000.0,
        Keys.Rope.SCALING_TYPE: "none",
        Keys.Tokenizer.ADD_EOS: False,
        Keys.Tokenizer.EOT_ID: other(Keys.Tokenizer.EOS_ID),
        Keys.LLM.VOCAB_SIZE: len(tokens) if isinstance(tokens, list) else None,
    }
    return next((value for template, value in assumed.items() if template.format(arch=arch) == key), None)


def _plain(value: object) -> object:
    return value.data if isinstance(value, Value) else value


def _same(left: object, right: object) -> bool:
    """Whether two values are equal: floats as float32, integers of any GGUF type."""
    left, right = _plain(left), _plain(right)
    if isinstance(left, float) or isinstance(right, float):
        if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            return False
        with np.errstate(over="ignore"):
            return bool(np.float32(left) == np.float32(right))
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and left == right


def _shown(value: Value, against: Value) -> str:
    """Return a value for a message; for a list, the first item that differs from `against`."""
    if not isinstance(value.data, (list, tuple)):
        return f"{value.data!r:.80}"
    if isinstance(against.data, (list, tuple)):
        places = range(min(len(value.data), len(against.data)))
        for place in places:
            if not _same(value.data[place], against.data[place]):
                return f"{value.data[place]!r:.80} at index {place}"
    return f"a list of {len(value.data)}"
