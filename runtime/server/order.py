"""What a request asks for, whatever API it came by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tritgguf.runtime.chat.chat_template import Message, Tool


@dataclass(frozen=True)
class Order:
    """What a request asks for: a prompt (a conversation, a text or token ids) and how to continue it.

    `settings` are fields of Sampling. `grammar` is in llama.cpp's notation. `drop_old` lets the oldest messages be left
    out where the conversation is too long, as Ollama does. `shift` tells whether the middle is dropped when the context
    is full, None leaves that to the server; the first `keep` tokens stay then, see prompt.kept_tokens.
    """

    messages: Sequence[Message] | None = None
    text: str | Sequence[int] = ""
    tools: Sequence[Tool] | None = None
    think: bool | None = None
    drop_old: bool = False
    shift: bool | None = None
    keep: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    n_top: int | None = None
    grammar: str | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
