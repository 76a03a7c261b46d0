"""The conversations on which a Go template and a jinja template are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Message = Mapping[str, str]  # "role", "content" and, for some answers, "thinking"


@dataclass(frozen=True)
class Sample:
    """A conversation that ends with a question, and whether the user turned thinking on or off (None: neither)."""

    messages: tuple[Message, ...]
    think: bool | None = None

    @property
    def has_system(self) -> bool:
        """Whether the conversation has a system message."""
        return any(message["role"] == "system" for message in self.messages)


def _conversation(*contents: str, system: str | None = None, thinking: str = "") -> tuple[Message, ...]:
    """Return questions and answers in turn; each answer gets the same `thinking`."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, content in enumerate(contents):
        if number % 2 == 0:
            messages.append({"role": "user", "content": content})
        else:
            messages.append({"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {}))
    return tuple(messages)


_QUESTION = "What is 2 + 2?"
_TURNS = ("Two lines,\nand a tab:\t.", "Grüße & <b>café</b> 'quoted' \"twice\" {{ braces }} {% tag %}", "你好 🙂")
_LONG = ("one", "two\n\nthree", "four", "five", "six")
_CONVERSATIONS = (
    _conversation(_QUESTION),
    _conversation(_QUESTION, system="Be brief.\n\nAnswer in French."),
    _conversation(*_TURNS),
    _conversation(*_TURNS, system="You are {{ .Name }}."),
    _conversation(*_LONG),
    _conversation(*_LONG, system="Count."),
    _conversation(*_TURNS, thinking="Hm.\n\nYes."),
)
SAMPLES = tuple(Sample(messages, think) for messages in _CONVERSATIONS for think in (None, True, False))
# Shows whether an empty system message is rendered, left out, or replaced by a default one.
EMPTY_SYSTEM = Sample(_conversation(_QUESTION, system=""))
# Shows whether a jinja template trims its messages. No Go template can: Ollama has no function for it.
PADDED = Sample(_conversation("  spaces around \n", "\n answer  ", " more "))
