"""llama.cpp's names for pre-tokenizers (`tokenizer.ggml.pre`), found by the structure of tokenizer.json's own.

The structure is written as a tuple of steps and looked up in a table; a model's name never counts. A structure that
isn't in the table is an error. Each row was checked against the regular expressions in llama.cpp
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp), and the tests compare every row in llama.cpp
with the tokenizers library. Names that llama.cpp treats alike have one row: falcon3 is llama-bpe here; starcoder,
refact and command-r are smollm; stablelm2 and deepseek-r1-qwen are qwen2; olmo is gpt-2; llama4 is gpt-4o.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MINICPM5 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
NO_MARKS = (
    "llama.cpp's expression for this pre-tokenizer splits before combining marks (Hindi, Thai, decomposed accents) "
    "and doesn't tell the case of letters beyond a-z"
)
WIDE_SPACES = "llama.cpp doesn't treat spaces such as U+2003 and U+3000 as part of this pre-tokenizer's CJK range"
# These leave no character unmatched, so "remove what doesn't match" and "isolate what does" are the same split.
COVERS_EVERYTHING = frozenset({LLAMA3, QWEN2, QWEN35, MINICPM5, TEKKEN, GPT4O})

BYTES = "ByteLevel"
WORDS_AND_BYTES = "ByteLevel with its own expression"
SINGLE_DIGITS = "Digits one by one"


def split(expression: str) -> str:
    return f"Split {expression}"


@dataclass(frozen=True)
class PreTokenizer:
    """One row: `merges_ignored` is whether llama.cpp looks a whole word up in the vocabulary before it merges.

    `difference` describes where llama.cpp's expression differs a little from the source's; texts that show the
    difference fail the check.
    """

    name: str
    steps: tuple[str, ...]
    merges_ignored: bool = False
    difference: str = ""


PRE_TOKENIZERS = (
    PreTokenizer("llama-bpe", (split(LLAMA3), BYTES), merges_ignored=True),
    PreTokenizer("dbrx", (split(LLAMA3), BYTES)),
    PreTokenizer("qwen2", (split(QWEN2), BYTES)),
    PreTokenizer("qwen35", (split(QWEN35), BYTES)),
    PreTokenizer("smollm", (SINGLE_DIGITS, WORDS_AND_BYTES)),
    PreTokenizer("gpt-2", (WORDS_AND_BYTES,)),
    PreTokenizer("gpt-4o", (split(GPT4O), BYTES), difference=NO_MARKS),
    PreTokenizer("tekken", (split(TEKKEN), BYTES), merges_ignored=True, difference=NO_MARKS),
    PreTokenizer("minicpm5", (split(r"\p{N}{1,3}"), split(MINICPM5), BYTES), merges_ignored=True),
    PreTokenizer("deepseek-v3", (split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3), BYTES)),
    PreTokenizer(
        "deepseek-coder",
        (
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-퟿]+"),
            SINGLE_DIGITS,
            BYTES,
        ),
        difference=WIDE_SPACES,
    ),
)


def steps_of(pre_tokenizer: object) -> tuple[str, ...]:
    """Return tokenizer.json's `pre_tokenizer` as steps; an unknown step is its JSON."""
    if not isinstance(pre_tokenizer, Mapping):
        return () if pre_tokenizer is None else (_as_json(pre_tokenizer),)
    if pre_tokenizer.get("type") == "Sequence" and isinstance(pre_tokenizer.get("pretokenizers"), list):
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in steps_of(part))
    return (_step(pre_tokenizer),)


def candidates(steps: tuple[str, ...]) -> list[PreTokenizer]:
    """Return the rows with exactly these steps; they differ only in `merges_ignored`."""
    return [row for row in PRE_TOKENIZERS if row.steps == steps]


def as_pre_tokenizer(steps: tuple[str, ...]) -> dict[str, Any]:
    """Return tokenizer.json's `pre_tokenizer` with these steps, which `steps_of` gives again."""
    parts = [_as_part(step) for step in steps]
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _as_part(step: str) -> dict[str, Any]:
    if step == SINGLE_DIGITS:
        return {"type": "Digits", "individual_digits": True}
    if step in (BYTES, WORDS_AND_BYTES):
        own = step == WORDS_AND_BYTES
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own}
    expression = step.removeprefix(split(""))
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _step(part: Mapping[str, Any]) -> str:
    match part:
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False}:
            return split(expression)
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Removed", "invert": True} if (
            expression in COVERS_EVERYTHING
        ):
            return split(expression)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return WORDS_AND_BYTES if part.get("use_regex", True) else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return SINGLE_DIGITS
        case _:
            return _as_json(part)


def _as_json(part: object) -> str:
    return json.dumps(part, ensure_ascii=False)
