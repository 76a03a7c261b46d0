"""Prompts as token ids: texts, and conversations by the file's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.chat_template import ChatTemplate, Message, Tool
from tritgguf.runtime.chat.prompt_tokens import prompt_tokens
from tritgguf.runtime.engine.backend import Model


class Prompts:
    """Makes the prompts of one open model; several threads may use it at once."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def text_tokens(self, text: str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """Return the token ids of `text`, with BOS as in Session.tokenize."""
        vocab = self._model.vocab
        if bos and vocab.bos is None:
            raise EngineError(f"{self._model.path}: the vocabulary has no BOS token")
        return self._with_bos(vocab.tokenize(text, special=special), bos)

    def chat_tokens(
        self, messages: Sequence[Message], *, think: bool | None = None, tools: Sequence[Tool] | None = None
    ) -> list[int]:
        """Return the token ids of the rendered conversation, up to where the assistant's answer begins.

        The texts of control tokens become those tokens where the template writes them, not where a message has them.
        """
        render = partial(self.template.render, think=think)
        return self._with_bos(prompt_tokens(self._model.vocab, render, messages, tools))

    @cached_property
    def template(self) -> ChatTemplate:
        """The file's chat template; EngineError if it has none."""
        source, vocab = self._model.chat_template, self._model.vocab
        if source is None:
            raise EngineError(f"{self._model.path}: no chat template in the file: it is a base model; use generate()")
        bos, eos = ("" if token is None else vocab.text(token) for token in (vocab.bos, vocab.eos))
        return ChatTemplate(source, bos=bos, eos=eos)

    def _with_bos(self, ids: list[int], bos: bool | None = None) -> list[int]:
        vocab = self._model.vocab
        wanted = vocab.add_bos if bos is None else bos
        return [vocab.bos, *ids] if wanted and vocab.bos is not None and ids[:1] != [vocab.bos] else ids
