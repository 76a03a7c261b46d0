"""Read a Modelfile by the rules of Ollama's parser, character by character; shares no code with it."""

from __future__ import annotations

COMMANDS = ("FROM", "TEMPLATE", "PARAMETER", "SYSTEM", "LICENSE")


def read(text: str) -> list[tuple[str, str]]:
    """Return commands and values, PARAMETERs by their names; raise ValueError if Ollama would refuse the text."""
    commands = []
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n":
            position += 1
            continue
        word, position = _word(text, position)
        if word.upper() not in COMMANDS:
            raise ValueError(f"command must be one of {COMMANDS}, not {word!r}")
        if word.upper() == "PARAMETER":
            word, position = _word(text, position)
        value, position = _value(text, position)
        commands.append((word, value))
    if not any(word == "FROM" for word, _ in commands):
        raise ValueError("no FROM line")
    return commands


def _word(text: str, position: int) -> tuple[str, int]:
    end = position
    while text[end] not in " \t":
        if not (text[end].isascii() and (text[end].isalnum() or text[end] == "_")):
            raise ValueError(f"{text[end]!r} in a word")
        end += 1
    return text[position:end], end + 1


def _value(text: str, position: int) -> tuple[str, int]:
    """Return a value, which ends at the first line end outside quotes; unprintable characters are dropped."""
    taken = ""
    while position < len(text):
        letter = text[position]
        position += 1
        if letter in "\r\n":
            unquoted = _unquoted(taken.strip())
            if unquoted is not None:
                return unquoted, position
            taken += letter
        elif letter.isprintable() or letter == "\t":
            taken += letter
    unquoted = _unquoted(taken.strip())
    if unquoted is None:
        raise ValueError("unexpected end")
    return unquoted, position


def _unquoted(value: str) -> str | None:
    """Return a value without its quotes; None if they aren't closed."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value
