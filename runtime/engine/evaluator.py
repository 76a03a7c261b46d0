"""Evaluates token sequences on one model and context, and reuses the prefix that the KV cache holds already."""

from __future__ import annotations

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context


class Evaluator:
    """Owns a model and its context, and knows the tokens in the KV cache."""

    def __init__(self, model: Model, context: Context, n_ctx: int) -> None:
        self._model = model
        self._context = context
        self._closed = False
        self._cached: list[int] = []  # the tokens in the KV cache
        self.n_ctx = n_ctx

    @property
    def model(self) -> Model:
        """The loaded file; EngineError after close(), which frees its memory."""
        self._check_open()
        return self._model

    @property
    def context(self) -> Context:
        """The KV cache and the last logits; EngineError after close()."""
        self._check_open()
        return self._context

    def evaluate(self, tokens: list[int]) -> int:
        """Make the KV cache hold exactly `tokens`; returns how many of them it held already.

        The last token is always evaluated, so that `context` has its logits.
        """
        n_same = common_prefix(self._cached, tokens[:-1])
        if n_same < len(self._cached):
            n_same = self._forget_from(n_same)
        for start in range(n_same, len(tokens), self.context.n_batch):
            self._decode(tokens[start : start + self.context.n_batch])
        return n_same

    def close(self) -> None:
        """Free the memory of the model and its context; a second call does nothing."""
        self._closed = True
        self._context.close()
        self._model.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._model.path}: the session is closed")

    def _decode(self, tokens: list[int]) -> None:
        try:
            self.context.decode(tokens, len(self._cached))
            self._cached += tokens
        except BaseException:  # Ctrl-C too: nobody knows which of these tokens the cache holds
            self._forget_from(len(self._cached))
            raise

    def _forget_from(self, n_tokens: int) -> int:
        n_kept = self.context.keep(n_tokens)
        del self._cached[n_kept:]
        return n_kept


def common_prefix(left: list[int], right: list[int]) -> int:
    size = min(len(left), len(right))
    if left[:size] == right[:size]:  # the usual case, at C speed
        return size
    return next(index for index in range(size) if left[index] != right[index])
