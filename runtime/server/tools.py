"""Functions that a model may call: what clients say of them, and the grammar of an answer that must call one."""

from __future__ import annotations

import json
from typing import Any

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.json_schema import ANY_OBJECT, grammar_of_schema
from tritgguf.runtime.server.answer_parts import CALL, END_CALL
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.fields import Fields
from tritgguf.runtime.server.models import ServedModel


def knows_tools(served: ServedModel) -> bool:
    """Return whether the model's template describes tools, and has calls written as they are read here."""
    template = served.model.chat_template
    return template is not None and CALL in template and served.prompts.template.knows_tools


def tool_list(served: ServedModel, fields: Fields) -> list[dict[str, Any]] | None:
    """Return the body's tools; RequestError if they are malformed or the model can't call functions."""
    items = fields.items("tools")
    if not items:
        return None
    if not knows_tools(served):
        raise RequestError(
            f"{served.name} can't call functions: its chat template has no place for tools, or writes calls otherwise "
            f"than as {CALL}; leave tools out",
            param="tools",
        )
    for index, item in enumerate(items):
        tool = Fields(item if isinstance(item, dict) else {}, f"tools[{index}].")
        function = tool.part("function") or Fields({}, f"tools[{index}].function.")
        if not function.text("name"):
            raise function.error("name", "missing")
        function.part("parameters")
    return items


def forced_call(fields: Fields, tools: list[dict[str, Any]] | None) -> str | None:
    """Return the grammar of an answer that is one call, where tool_choice asks for that."""
    choice = fields.get("tool_choice")
    if choice in (None, "auto", "none"):
        return None
    names = [tool["function"]["name"] for tool in tools or []]
    if isinstance(choice, dict):
        named = (Fields(choice, "tool_choice.").part("function") or Fields({})).text("name")
        if named not in names:
            raise RequestError(f"tool_choice names {named!r}, which isn't among the tools", param="tool_choice")
        names = [named]
    elif choice != "required":
        raise RequestError(
            f"tool_choice is {json.dumps(choice)[:40]}, expected none, auto, required or a function",
            param="tool_choice",
        )
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or ANY_OBJECT,
            },
            "required": ["name", "arguments"],
        }
        for tool in tools or []
        if tool["function"]["name"] in names
    ]
    if not calls:
        raise RequestError("tool_choice asks for a call, but there are no tools", param="tool_choice")
    try:
        return grammar_of_schema({"anyOf": calls}, before=f"{CALL}\n", after=f"\n{END_CALL}")
    except TritggufError as error:
        raise RequestError(f"a tool's parameters: {error}", param="tools") from error
