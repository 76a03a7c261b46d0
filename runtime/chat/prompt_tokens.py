"""Token ids of a rendered conversation, in which the messages' texts never become control tokens.

A message is text, whoever wrote it: a document that says `<|im_end|>` must not end the user's turn. The same holds for
the system message, and for the assistant's earlier answers: generated control tokens have no text, so an answer that
says `<|im_end|>` was spelled in ordinary tokens. Tokens that a tokenizer calls user-defined, as Qwen3's `<think>`,
aren't control tokens; llama.cpp makes them of any text, and so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from tritgguf.runtime.chat.chat_template import Message, Tool

Render = Callable[..., str]  # of messages, and of `tools` where there are any
# Characters for private use, which no template looks for and no tokenizer has in a token. They have no case and aren't
# spaces, so templates treat them as they treat "<".
_STAND_INS = range(0x10FFFD, 0x10F000, -1)
_SPACES = " \t\n\v\f\r"  # of isspace() in C


class Vocabulary(Protocol):
    """What is needed of the vocabulary in the file (engine.vocab.Vocab)."""

    def tokenize(self, text: str, *, special: bool) -> list[int]: ...
    def text(self, token: int) -> str: ...
    def needs_special(self, token: int) -> bool: ...
    def trims(self, token: int) -> tuple[bool, bool]: ...


def prompt_tokens(
    vocab: Vocabulary, render: Render, messages: Sequence[Message], tools: Sequence[Tool] | None = None
) -> list[int]:
    """Return the ids of what `render` makes of the messages and tools, without BOS.

    They are those of the whole text unless a control token comes from a message. Whether one does, a second rendering
    tells, in which none can begin inside a message, since other characters stand for the first ones of their texts.
    """

    def rendered(given: Sequence[Any]) -> str:
        return render(given[0], tools=given[1]) if tools else render(given[0])

    given = [messages, tools]
    text = rendered(given)
    ids = vocab.tokenize(text, special=True)
    controls = _controls(vocab, ids)
    names = {vocab.text(token) for token in controls}
    stand_ins = _stand_ins({name[0] for name in names if name}, text, given)
    hidden = _changed(given, lambda content: content.translate(stand_ins))
    if hidden == given:
        return ids
    hidden_text = rendered(hidden)
    own = _controls(vocab, vocab.tokenize(hidden_text, special=True))
    if own == controls:
        return ids
    # The template may look for such characters in messages, for "</think>" say. So only as few as needed are replaced.
    fewer = rendered(_changed(given, lambda content: _without_names(content, names, stand_ins)))
    if _controls(vocab, vocab.tokenize(fewer, special=True)) == own:
        hidden_text = fewer
    return [token for part in _parts(vocab, hidden_text, own, stand_ins) for token in part]


def _controls(vocab: Vocabulary, ids: Sequence[int]) -> list[int]:
    needed = {token for token in set(ids) if vocab.needs_special(token)}
    return [token for token in ids if token in needed]


def _stand_ins(characters: set[str], text: str, given: object) -> dict[int, int]:
    """Return a character for each of `characters`, none of which is in the texts."""
    used = set(text).union(*_texts(given))
    free = (code for code in _STAND_INS if chr(code) not in used)
    return {ord(character): code for character, code in zip(sorted(characters), free, strict=False)}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in [*value.keys(), *value.values()] if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _changed(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401
    """Return JSON-like data with its texts changed, names of properties too; a message's role stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(key): part if key == "role" and isinstance(part, str) else _changed(part, change)
            for key, part in value.items()
        }
    return [_changed(part, change) for part in value] if isinstance(value, (list, tuple)) else value


def _without_names(content: str, names: set[str], stand_ins: Mapping[int, int]) -> str:
    for name in sorted(names, key=len, reverse=True):
        if name:
            content = content.replace(name, name[0].translate(stand_ins) + name[1:])
    return content


def _parts(vocab: Vocabulary, text: str, controls: Sequence[int], stand_ins: Mapping[int, int]) -> Iterator[list[int]]:
    """Yield the ids of `text` part by part: what lies between two control tokens is text if it has a stand-in.

    Neighbours of a control token don't change each other's ids, so the parts may be tokenized one by one.
    """
    originals = {code: character for character, code in stand_ins.items()}
    start, waiting, trims_next = 0, "", False
    for token in [*controls, None]:
        name = "" if token is None else vocab.text(token)
        end = len(text) if token is None else text.find(name, start)
        if end < 0:  # the unknown token, which can stand for other texts
            continue
        between = text[start:end]
        trims_left, trims_right = (False, False) if token is None else vocab.trims(token)
        if any(chr(code) in between for code in originals):
            yield vocab.tokenize(waiting, special=True)
            between = between.lstrip(_SPACES) if trims_next else between
            between = between.rstrip(_SPACES) if trims_left else between
            yield vocab.tokenize(between.translate(originals), special=False)
            waiting = name
        else:
            waiting += between + name
        start, trims_next = end + len(name), trims_right
    yield vocab.tokenize(waiting, special=True)
