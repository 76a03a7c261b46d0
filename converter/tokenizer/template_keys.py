"""Chat templates: read a checkpoint's, write them as GGUF keys, find the token that ends an assistant's turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import Keys

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, string, strings
from tritgguf.converter.tokenizer.files import read_object_if_present, read_text

DEFAULT = "default"
# No template changes this text: it has no spaces to trim and nothing to escape.
_ANSWER = "tritggufanswer"


def read_chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; .jinja files win over chat_template.json, and that over tokenizer_config.json."""
    templates = _named(tokenizer_config.get("chat_template"), "tokenizer_config.json")
    templates |= _named(
        read_object_if_present(folder / "chat_template.json").get("chat_template"), "chat_template.json"
    )
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_text(path)
    if (folder / "chat_template.jinja").is_file():
        templates[DEFAULT] = read_text(folder / "chat_template.jinja")
    return templates


def chat_template_metadata(templates: Mapping[str, str]) -> Metadata:
    """Return the keys: the default template, the others under their names, and the list of those names."""
    keys: Metadata = {}
    names = []
    for name, template in sorted(templates.items()):
        if name != DEFAULT:
            # The letters that gguf-py and llama.cpp allow in a key.
            names.append(re.sub(r"[^A-Za-z0-9]", "_", name))
            keys[Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=names[-1])] = string(template)
    if names:
        keys[Keys.Tokenizer.CHAT_TEMPLATES] = strings(names)
    if DEFAULT in templates:
        keys[Keys.Tokenizer.CHAT_TEMPLATE] = string(templates[DEFAULT])
    return keys


def end_of_turn(template: str, special_texts: Sequence[str], variables: Mapping[str, str | None]) -> str | None:
    """Return the special token that the template writes after an assistant's answer, by rendering a short chat.

    None if the template can't be rendered here or ends a turn with plain text. `variables` are the template's own,
    such as bos_token.
    """
    _, found, tail = (_rendered(template, variables) or "").rpartition(_ANSWER)
    places = [(tail.index(text), -len(text), text) for text in special_texts if found and text in tail]
    return min(places)[2] if places else None


def begins_with_special(template: str, special_texts: Sequence[str], variables: Mapping[str, str | None]) -> bool:
    """Whether the template begins a short chat with a special token; False if it can't be rendered here."""
    rendered = _rendered(template, variables) or ""
    return any(text and rendered.startswith(text) for text in special_texts)


def _rendered(template: str, variables: Mapping[str, str | None]) -> str | None:
    """Return a chat of a question and an answer; None if the template can't be rendered here."""
    from jinja2 import TemplateError  # not at the top: it takes long to import

    from tritgguf.converter.tokenizer.template_budget import budget_for
    from tritgguf.converter.tokenizer.template_sandbox import template_environment

    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    given = {name: text for name, text in variables.items() if text is not None}
    try:
        renderer = template_environment().from_string(template)
        with budget_for(messages):
            return renderer.render(messages=messages, add_generation_prompt=False, **given)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError):
        return None


def _named(entry: object, name: str) -> dict[str, str]:
    """Return templates by name; the entry is one string, or a list of {"name", "template"}."""
    match entry:
        case None:
            return {}
        case str():
            return {DEFAULT: entry}
        case list() if all(
            isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
            for item in entry
        ):
            return {item["name"]: item["template"] for item in entry}
        case _:
            raise TokenizerError(
                f"{name}: chat_template is a {type(entry).__name__}; expected a string or a list of name and template"
            )


def special_text(metadata: Metadata, id_key: str) -> str:
    """Return the text of the token whose id is under `id_key` in a GGUF file, such as BOS; "" if there is none."""
    token_id, tokens = metadata.get(id_key), metadata.get(Keys.Tokenizer.LIST)
    if token_id is None or tokens is None or not isinstance(token_id.data, int) or not isinstance(tokens.data, list):
        return ""
    return str(tokens.data[token_id.data]) if 0 <= token_id.data < len(tokens.data) else ""
