"""The chat template of a model file: Jinja, rendered as transformers does it.

The settings of the environment and the functions that a template may call are those of apply_chat_template:
https://github.com/huggingface/transformers/blob/main/src/transformers/utils/chat_template_utils.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import jinja2
from gguf import Keys
from jinja2 import meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.metadata import Metadata

Message = Mapping[str, str]
_THINKING = "enable_thinking"  # the name that Qwen3 began and most templates of reasoning models read


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the text to train on; rendering keeps its content only."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it without ClassVar)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """A compiled template, which may insert the texts of BOS and EOS and the time that `clock` returns.

    `variables` are more that it may insert. `knows_thinking` tells whether it reads enable_thinking.
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
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: clock().strftime(pattern)
        self._variables = {"bos_token": bos, "eos_token": eos, **(variables or {})}
        try:
            self._template = environment.from_string(source)
            self.knows_thinking = _THINKING in meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise EngineError(f"the file's chat template isn't valid Jinja ({_line(error)})") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        fold_system: bool = True,
        think: bool | None = None,
    ) -> str:
        """Return the conversation as one text that ends where the assistant's answer begins.

        Some templates refuse a system message, or leave it out. With `fold_system`, its text is then put before the
        first user message. `think` sets the template's enable_thinking; None leaves that to the template's default.
        EngineError if the template fails.
        """
        folded = _fold_system(messages) if fold_system else None
        if folded is None:
            return self._render(messages, add_generation_prompt, think)
        try:
            text = self._render(messages, add_generation_prompt, think)
        except EngineError:
            return self._render(folded, add_generation_prompt, think)
        return text if messages[0]["content"].strip() in text else self._render(folded, add_generation_prompt, think)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, think: bool | None) -> str:
        thinking = {} if think is None else {_THINKING: think}
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
                **thinking,
            )
        except Exception as error:  # the template is a program from the file: it can raise anything
            raise EngineError(f"the file's chat template refuses the conversation ({_line(error)})") from error


def special_text(metadata: Metadata, id_key: str) -> str:
    """Return the text of the token whose id is under `id_key` in a GGUF file, such as BOS; "" if there is none."""
    token_id, tokens = metadata.get(id_key), metadata.get(Keys.Tokenizer.LIST)
    if token_id is None or tokens is None or not isinstance(token_id.data, int) or not isinstance(tokens.data, list):
        return ""
    return str(tokens.data[token_id.data]) if 0 <= token_id.data < len(tokens.data) else ""


def _fold_system(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages with the system text in the first user text; None if they don't start with these two."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    # One line end, as llama.cpp joins them (common/chat.cpp, system_message_not_supported), and with it Ollama.
    first = {"role": "user", "content": f"{messages[0]['content']}\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
