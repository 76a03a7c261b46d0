"""The chat template of a model file: Jinja, rendered as transformers does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta

from tritgguf.converter.errors import EngineError
from tritgguf.converter.tokenizer.template_budget import budget_for
from tritgguf.converter.tokenizer.template_sandbox import template_environment

Message = Mapping[str, Any]  # role and content; tool calls and the like have more
Tool = Mapping[str, Any]  # as OpenAI's API describes a function
_THINKING = "enable_thinking"  # the name that Qwen3 began and most templates of reasoning models read


class ChatTemplate:
    """A compiled template, which may insert the texts of BOS and EOS and the time that `clock` returns.

    `variables` are more that it may insert. `knows_thinking` tells whether it reads enable_thinking, `knows_tools`
    whether it writes the tools into the prompt.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str = "",
        eos: str = "",
        clock: Callable[[], datetime] = datetime.now,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._variables = {"bos_token": bos, "eos_token": eos, **(variables or {})}
        try:
            environment = template_environment(clock)
            self._template = environment.from_string(source)
            read = meta.find_undeclared_variables(environment.parse(source))
            self.knows_thinking, self.knows_tools = _THINKING in read, "tools" in read
        except jinja2.TemplateError as error:
            raise EngineError(f"the file's chat template isn't valid Jinja ({_line(error)})") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        fold_system: bool = True,
        think: bool | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> str:
        """Return the conversation as one text that ends where the assistant's answer begins.

        Some templates refuse a system message, or leave it out. With `fold_system`, its text is then put before the
        first user message. `think` sets the template's enable_thinking; None leaves that to the template's default.
        `tools` are functions that the answer may call.
        EngineError if the template fails.
        """
        options: dict[str, Any] = {} if think is None else {_THINKING: think}
        options |= {"add_generation_prompt": add_generation_prompt, "tools": list(tools) if tools else None}
        folded = _fold_system(messages) if fold_system else None
        if folded is None:
            return self._render(messages, options)
        try:
            text = self._render(messages, options)
        except EngineError:
            return self._render(folded, options)
        return text if messages[0]["content"].strip() in text else self._render(folded, options)

    def _render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        given = [dict(message) for message in messages]
        try:
            with budget_for([given, options["tools"]]):
                return self._template.render(messages=given, documents=None, **self._variables, **options)
        except Exception as error:  # the template is a program from the file: it can raise anything
            raise EngineError(f"the file's chat template refuses the conversation ({_line(error)})") from error


def _fold_system(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages with the system text in the first user text; None if they don't start with these two."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    # One line end, as llama.cpp joins them (common/chat.cpp, system_message_not_supported), and with it Ollama.
    first = {"role": "user", "content": f"{messages[0]['content']}\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"
