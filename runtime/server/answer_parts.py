"""Divides a model's text into what it thinks, what it says and the functions that it calls.

Most templates of models that think or call functions agree on the tags: <think>…</think> and <tool_call>{"name": …,
"arguments": {…}}</tool_call>.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["content", "thinking"]
THINK, END_THINK, CALL, END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


class AnswerParts:
    """Takes the text piece by piece; `calls` are the functions called so far.

    `thinks` at the start where the prompt ends with <think> already. What isn't a well-formed call stays text.
    """

    def __init__(self, *, tools: bool, thinks: bool = False, knows_thinking: bool = True) -> None:
        self.calls: list[ToolCall] = []
        self._opening = (*((THINK,) if knows_thinking else ()), *((CALL,) if tools else ()))
        self._inside: str | None = THINK if thinks else None
        self._held, self._ended = "", False
        self._begins = dict.fromkeys(("content", "thinking"), True)

    def feed(self, text: str) -> Iterator[tuple[Kind, str]]:
        """Yield what can be shown now."""
        self._held += text
        while True:
            tags = {None: self._opening, THINK: (END_THINK,), CALL: (END_CALL,)}[self._inside]
            found = min((at for tag in tags if (at := self._held.find(tag)) >= 0), default=-1)
            if found < 0:
                break
            tag = next(tag for tag in tags if self._held.startswith(tag, found))
            before, self._held = self._held[:found], self._held[found + len(tag) :]
            yield from self._shown(before, closed=True)
            self._inside = tag if self._inside is None else None
        if self._inside != CALL:
            n_held = max((_overlap(self._held, tag) for tag in tags), default=0)
            n_shown = len(self._held) - n_held
            before, self._held = self._held[:n_shown], self._held[n_shown:]
            yield from self._shown(before, closed=False)

    def end(self) -> Iterator[tuple[Kind, str]]:
        """Yield what was held back; a call without its end tag is taken if it is whole."""
        rest, self._held, self._ended = self._held, "", True
        yield from self._shown(rest, closed=self._inside == CALL)

    def _shown(self, text: str, *, closed: bool) -> Iterator[tuple[Kind, str]]:
        if self._inside == CALL and closed:
            call = _call(text)
            if call is None:
                yield "content", CALL + text + ("" if self._ended else END_CALL)
            else:
                self.calls.append(call)
            return
        kind: Kind = "thinking" if self._inside == THINK else "content"
        if self._begins[kind]:  # templates put empty lines between the parts
            text = text.lstrip("\n") if kind == "thinking" or not self._begins["thinking"] else text
        if self.calls and not text.strip():
            return
        if text:
            self._begins[kind] = False
            yield kind, text


def _call(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _overlap(text: str, tag: str) -> int:
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
