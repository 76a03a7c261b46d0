"""Run GGUF files: `open(path)` gives a Session that tokenizes, generates, chats and returns logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritgguf.runtime.chat.conversation import Conversation
from tritgguf.runtime.engine.sampling import Sampling

if TYPE_CHECKING:
    from tritgguf.runtime.chat.session import Session, open

__all__ = ["Conversation", "Sampling", "Session", "open"]


def __getattr__(name: str) -> object:
    # Loaded when first used: the native library takes time, and converting must work where it can't be loaded.
    if name in ("Session", "open"):
        from tritgguf.runtime.chat import session

        return session.Session if name == "Session" else session.open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
