"""tokenizer.json as the tokenizers library loads it: the reference that a file's token ids are compared with."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.files import (
    TOKENIZER_JSON,
    AddedToken,
    read_bytes,
    read_object_if_present,
    side_added_tokens,
)

OTHER_FILES = "tokenizer_config.json or added_tokens.json"


class Reference:
    """The library's tokenizer for a folder, with the tokens that other files add to it, as in transformers.

    It is loaded when it is first used: that takes a quarter of a second and tens of megabytes for a large vocabulary.
    `own` are the added tokens of tokenizer.json; their ids are compared with the library's. None skips this.
    """

    def __init__(self, folder: Path, own: Iterable[AddedToken] | None = None) -> None:
        self.folder = folder
        self.own = own

    def load(self) -> None:
        """Load the tokenizer; raise TokenizerError where the library refuses it or gives an added token another id."""
        _ = self._tokenizer

    def __call__(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return ids; special tokens in the text are parsed, those around it are added if asked for.

        Raises TokenizerError as `load` does.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        tokenizer = load_library(read_bytes(self.folder / TOKENIZER_JSON).removeprefix(codecs.BOM_UTF8))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for token in self.own or ():
            _check_id(token, tokenizer, TOKENIZER_JSON)
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        side = side_added_tokens(self.folder, read_object_if_present(self.folder / "tokenizer_config.json"))
        for token in side:
            if token.text not in known:
                tokenizer.add_tokens([_in_library(token)])
                _check_id(token, tokenizer, OTHER_FILES)
                known.add(token.text)
        return tokenizer


def load_library(stored: bytes) -> tokenizers.Tokenizer:
    """Load the bytes of a tokenizer.json; raise TokenizerError where the tokenizers library refuses them."""
    try:
        return tokenizers.Tokenizer.from_buffer(stored)
    except BaseException as error:  # the library raises Exception itself, and PanicException, a BaseException
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = " ".join(str(error).split()).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise TokenizerError(f"{TOKENIZER_JSON} is refused by the tokenizers library: {reason:.200}") from error


def _in_library(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.text,
        single_word=token.single_word,
        lstrip=token.strips_left,
        rstrip=token.strips_right,
        normalized=token.normalized,
        special=token.special,
    )


def _check_id(token: AddedToken, tokenizer: tokenizers.Tokenizer, origin: str) -> None:
    """Compare ids: the library numbers added tokens from the end of the vocabulary on, whatever id a file gives."""
    found = tokenizer.token_to_id(token.text)
    if found != token.token_id:
        raise TokenizerError(
            f"added token {token.text!r:.80} has id {token.token_id} in {origin}, but {found} once {TOKENIZER_JSON} is "
            "loaded; save the tokenizer again so that the files agree"
        )
