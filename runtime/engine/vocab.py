"""The vocabulary of an open model: token ids of texts, texts of token ids, and what kind a token is."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from llama_cpp import llama_cpp as native  # backend.py loads this file, and says so where the library can't be loaded

from tritgguf.converter.errors import EngineError

_MAX_INPUT_BYTES = 2**31 - 1


class Vocab:
    """The tokenizer inside a GGUF file; `handle` is llama.cpp's, which lives in the model's memory."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 (a pointer)
        self.handle = handle
        self.n_tokens: int = native.llama_vocab_n_tokens(self.handle)
        self.bos: int | None = self._id_or_none(native.llama_vocab_bos(self.handle))
        self.eos: int | None = self._id_or_none(native.llama_vocab_eos(self.handle))
        self.add_bos: bool = bool(native.llama_vocab_get_add_bos(self.handle)) and self.bos is not None
        self.is_sentencepiece: bool = native.llama_vocab_type(self.handle) == native.LLAMA_VOCAB_TYPE_SPM

    @staticmethod
    def _id_or_none(token: int) -> int | None:
        return None if token < 0 else token

    def tokenize(self, text: str, *, special: bool, add_special: bool = False) -> list[int]:
        """Return the token ids of `text`; `special` makes tokens of the texts of special tokens.

        `add_special` adds BOS and EOS as the file's keys say.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EngineError(f"the text isn't valid Unicode at character {error.start}: {error.reason}") from error
        if len(data) > _MAX_INPUT_BYTES:
            raise EngineError(f"the text has {len(data)} bytes, at most {_MAX_INPUT_BYTES} can be tokenized at once")
        # There are rarely more tokens than bytes; then the first call returns minus their number.
        capacity = len(data) + 8
        while True:
            ids = (native.llama_token * capacity)()
            count = native.llama_tokenize(self.handle, data, len(data), ids, capacity, add_special, special)
            if count >= 0:
                return list(ids[:count])
            capacity = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token; control tokens have none unless `special`."""
        self.check([token])
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = native.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> bytes:
        """Return the bytes of the text that `tokens` encode, the inverse of tokenize()."""
        self.check(tokens)
        ids = (native.llama_token * len(tokens))(*tokens)
        size = 8 * len(tokens) + 16
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = native.llama_detokenize(self.handle, ids, len(tokens), buffer, size, False, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def text(self, token: int) -> str:
        """Return the token's text in the vocabulary, e.g. `<s>`."""
        self.check([token])
        return (native.llama_vocab_get_text(self.handle, token) or b"").decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Return whether the token ends a generation (end of text, of turn, of message)."""
        return bool(native.llama_vocab_is_eog(self.handle, token))

    def is_control(self, token: int) -> bool:
        return bool(native.llama_vocab_is_control(self.handle, token))

    def needs_special(self, token: int) -> bool:
        """Return whether only `special` makes this token of its text; a user-defined token is made of it always."""
        attributes = native.llama_vocab_get_attr(self.handle, token)
        return bool(attributes & (native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_UNKNOWN))

    def trims(self, token: int) -> tuple[bool, bool]:
        """Return whether the token swallows the spaces before it, and those after it."""
        attributes = native.llama_vocab_get_attr(self.handle, token)
        return bool(attributes & native.LLAMA_TOKEN_ATTR_LSTRIP), bool(attributes & native.LLAMA_TOKEN_ATTR_RSTRIP)

    def check(self, tokens: Sequence[int]) -> None:
        """Raise EngineError if an id isn't in the vocabulary: the native library would read beyond its tables."""
        for position, token in enumerate(tokens):
            if not 0 <= token < self.n_tokens:
                raise EngineError(f"token id {token} at position {position} isn't in 0..{self.n_tokens - 1}")
