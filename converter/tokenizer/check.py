"""Compare a written GGUF file's token ids with those of the source's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.battery import battery
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIdsProvider, installed_provider

_IDS_SHOWN = 8


def check_token_ids(tokenizer: SourceTokenizer, gguf_file: Path, read: ReadTokenIds) -> int:
    """Compare token ids on the battery; return the number of texts, raise TokenizerError at the first difference.

    Each text is tokenized as a prompt, with bos and eos. That compares the ids without them too: they are the same
    around each text, and the battery has the empty text.
    """
    texts = battery(tokenizer)
    ids = read(gguf_file, texts)
    if ids.found == ids.expected:
        return len(texts)
    for text, found in zip(texts, ids.found, strict=True):
        expected = tokenizer.encode_prompt(text)
        if found != expected:
            hint = f" ({tokenizer.hint})" if tokenizer.hint else ""
            raise TokenizerError(
                f"text {text!r:.100} as a prompt becomes other token ids than in the source tokenizer: "
                f"{_difference(expected, found)}{hint}; --no-check writes the file anyway"
            )
    return len(texts)


def _difference(expected: Sequence[int], found: Sequence[int]) -> str:
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    shown = slice(same, same + _IDS_SHOWN)
    return f"from position {same} on expected {list(expected[shown])}, found {list(found[shown])}"


def passthrough_tokenizer(gguf_file: Path, provider: TokenIdsProvider | None = None) -> SourceTokenizer:
    """Return the tokenizer of a GGUF source, whose keys are kept as they are.

    It encodes the battery's texts only, and only as prompts.

    `provider`, by default the installed one, is started when the first text is encoded.
    """

    @cache
    def battery_ids() -> dict[str, list[int]]:
        texts = battery(tokenizer)
        with (provider or installed_provider())(None) as read:
            return dict(zip(texts, read(gguf_file, texts).found, strict=True))

    tokenizer = SourceTokenizer("passthrough", {}, (), lambda text, _prompt: battery_ids()[text])
    return tokenizer
