"""What a source's tokenizer becomes: typed GGUF keys, and the source's own encoder to compare token ids with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.tokenizer.first_space import FirstSpace


def always(_text: str) -> bool:
    """Call every text comparable."""
    return True


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer read from a checkpoint folder.

    `metadata` holds every `tokenizer.*` key in the order to write them. `special_tokens` are the texts that become one
    token each anywhere in a prompt. `notes` are differences that no GGUF file can avoid, one sentence each; `hint`
    tells why token ids may differ, for the error where they do. `compared` tells for which texts a file can give the
    same ids, None for all (first_space.py). `comparable` is false for texts that one of the notes says get other ids.
    A "passthrough" tokenizer is a GGUF source's own.
    """

    kind: Literal["bpe", "sentencepiece", "unigram", "wordpiece", "passthrough"]
    metadata: Metadata = field(repr=False)
    special_tokens: tuple[str, ...] = field(repr=False)
    encode_with_source: Callable[[str, bool], list[int]] = field(repr=False)
    normalizes_nfc: bool = False
    notes: tuple[str, ...] = ()
    hint: str = ""
    compared: FirstSpace | None = None
    comparable: Callable[[str], bool] = field(default=always, repr=False)

    def encode(self, text: str) -> list[int]:
        """Return ids by the source's own library: special tokens in the text are parsed, no bos or eos is added."""
        return self.encode_with_source(text, False)

    def encode_prompt(self, text: str) -> list[int]:
        """Return ids as `encode` does, with what the source's tokenizer adds to a prompt, such as bos, around them."""
        return self.encode_with_source(text, True)

    def load(self) -> None:
        """Have the source's library load its files, unless it has; raise TokenizerError where it refuses them."""
        self.encode("")
