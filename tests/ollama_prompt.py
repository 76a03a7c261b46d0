"""The prompt that Ollama makes of a conversation with a Go template, rendered by real Go and recorded.

From reading Ollama's sources: messages in a row from one role are joined by a blank line, and all system messages
together are .System. Its tokenizer then puts BOS before the prompt if the file asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from tests import paths
from tritgguf.converter.ollama.samples import Message

GOLDEN = paths.GOLDEN / "go_prompts.json"


def template_data(messages: Sequence[Message], think: bool | None) -> dict[str, Any]:
    """Return what Ollama gives a template."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            thinking = message.get("thinking", "")
            joined.append({"Role": message["role"], "Content": message["content"], "Thinking": thinking})
    return {
        "System": "\n\n".join(message["content"] for message in messages if message["role"] == "system"),
        "Messages": joined,
        "Think": bool(think),
        "IsThinkSet": think is not None,
    }


def data_key(data: dict[str, Any]) -> str:
    """Return the name of this data in the golden file."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def ollama_prompt(template: str, messages: Sequence[Message], think: bool | None = None) -> str:
    """Return the recorded text; raise LookupError if this template was not recorded on this conversation."""
    key = data_key(template_data(messages, think))
    if key not in _recorded().get(template, {}):
        raise LookupError(
            f"{GOLDEN.name} has no text of this template and conversation: add both to "
            f"tests/golden/go_template_cases.py and run python -m tests.golden.record_go_templates\n"
            f"{template!r}\n{messages!r}, think={think}"
        )
    return _recorded()[template][key]


@cache
def _recorded() -> dict[str, dict[str, str]]:
    recorded: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return recorded
