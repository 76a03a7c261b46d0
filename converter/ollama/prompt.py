"""The prompt that Ollama makes of a conversation with a Go TEMPLATE.

From reading Ollama's sources: messages in a row from one role are joined by a blank line, all system messages together
are .System, and a template that names neither .Messages nor .Response gets .Response appended (not needed here: every
template of this project ranges over .Messages). Ollama's tokenizer then puts BOS before the prompt where the file says
so, as tritgguf's runtime does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tritgguf.converter.ollama.go_functions import Record
from tritgguf.converter.ollama.go_template import GoTemplate

Message = Mapping[str, str]


def ollama_prompt(template: GoTemplate, messages: Sequence[Message], *, think: bool | None = None) -> str:
    """Return the text; a message has "role", "content" and perhaps "thinking"; `think` None leaves that flag unset."""
    collated: list[Record] = []
    for message in messages:
        if collated and collated[-1]["Role"] == message["role"]:
            collated[-1]["Content"] += "\n\n" + message["content"]
        else:
            fields = {"Role": message["role"], "Content": message["content"], "Thinking": message.get("thinking", "")}
            collated.append(Record(fields))
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return template.render(
        {
            "System": system,
            "Messages": collated,
            "Tools": [],
            "Response": "",
            "Think": bool(think),
            "IsThinkSet": think is not None,
        }
    )


def go_literal(text: str) -> str:
    """Return template text that renders as `text` and that a Modelfile can hold between three quotes.

    Braces would begin an action, three quotes end the Modelfile's value, and Ollama's Modelfile parser drops letters
    that can't be printed: those become Go strings.
    """
    written = text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else "".join(f'{{{{ "{unit}" }}}}' for unit in _escaped(letter))
        for letter in written
    )


def _escaped(letter: str) -> list[str]:
    number = ord(letter)
    return [f"\\u{number:04x}"] if number < 0x10000 else [f"\\U{number:08x}"]
