"""The proof: token ids of a written GGUF file in the runtime against the source tokenizer's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.battery import battery
from tritgguf.converter.tokenizer.source import SourceTokenizer

# A child, because the converter never loads the runtime's library and a bad vocabulary makes that library abort.
_TOKEN_IDS_COMMAND = (sys.executable, "-m", "tritgguf.runtime.token_ids")
_IDS_SHOWN = 8


def check_token_ids(tokenizer: SourceTokenizer, gguf_file: Path) -> int:
    """Compare token ids on the battery; return the number of texts, TokenizerError at the first difference."""
    texts = battery(tokenizer)
    found_ids = _runtime_ids(gguf_file, texts)
    for text, found in zip(texts, found_ids, strict=True):
        expected = tokenizer.encode(text)
        if found != expected:
            hint = f" ({tokenizer.hint})" if tokenizer.hint else ""
            raise TokenizerError(
                f"text {text!r:.100} becomes other token ids than in the source tokenizer: "
                f"{_difference(expected, found)}{hint}; --no-check keeps the file all the same"
            )
    return len(texts)


def _runtime_ids(gguf_file: Path, texts: Sequence[str]) -> list[list[int]]:
    child = subprocess.run(
        [*_TOKEN_IDS_COMMAND, str(gguf_file)], input=json.dumps(texts).encode(), capture_output=True, check=False
    )
    if child.returncode != 0:
        lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = (
            lines[-1].removeprefix("error: ").removeprefix(f"{gguf_file}: ")
            if lines
            else f"exit code {child.returncode}"
        )
        raise TokenizerError(
            f"the runtime can't read the vocabulary back: {reason}; --no-check keeps the file all the same"
        )
    try:
        ids: list[list[int]] = json.loads(child.stdout)["ids"]
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"the runtime's token ids aren't the JSON that was expected: {error}") from error
    if len(ids) != len(texts):
        raise TokenizerError(f"the runtime gave ids for {len(ids)} texts; expected {len(texts)}")
    return ids


def _difference(expected: Sequence[int], found: Sequence[int]) -> str:
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    shown = slice(same, same + _IDS_SHOWN)
    return f"from place {same} on expected {list(expected[shown])}, found {list(found[shown])}"


def carried_tokenizer(gguf_file: Path) -> SourceTokenizer:
    """Return the tokenizer of a GGUF file as a source; it knows the ids of the battery, as the runtime gives them."""
    blank = SourceTokenizer("carried", {}, (), lambda _text: [])
    texts = battery(blank)
    ids = dict(zip(texts, _runtime_ids(gguf_file, texts), strict=True))
    return SourceTokenizer("carried", {}, (), ids.__getitem__)
