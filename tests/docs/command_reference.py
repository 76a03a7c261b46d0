"""The page docs/commands.md, made of what the command line says about itself.

`python -m tests.docs.command_reference` writes it. Names, words and order come from the commands' own parameters, not
from a help text, which each version of Typer draws in another way.
"""

from __future__ import annotations

import re
from typing import Any

import typer

from tests.paths import DOCS
from tritgguf.runtime.cli.main import application

PAGE = DOCS / "commands.md"
HEAD = """# Commands

`tritgguf COMMAND --help` says the same. This page is made from the commands themselves:
`python -m tests.docs.command_reference` writes it, and a test compares it.
"""


def command_reference() -> str:
    """Return the page."""
    program = typer.main.get_command(application())
    chapters = [HEAD, _overview(program.commands), _table("option", program.params)]
    chapters += [_chapter(name, command) for name, command in program.commands.items()]
    return "\n".join(chapters)


def _overview(commands: dict[str, Any]) -> str:
    rows = [
        f"| [`{name}`](#{_anchor(name)}) | {_text(_first_line(command.help))} |" for name, command in commands.items()
    ]
    return "\n".join(["| command | does |", "|---|---|", *rows]) + "\n"


def _chapter(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if not _is_option(parameter)]
    options = [parameter for parameter in command.params if _is_option(parameter)]
    usage = " ".join([f"tritgguf {name}", *map(_placeholder, arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"## tritgguf {name}\n", f"```\n{usage}\n```\n", _text(command.help) + "\n"]
    parts += [_table(what, found) for what, found in (("argument", arguments), ("option", options)) if found]
    return "\n".join(parts)


def _table(what: str, parameters: list[Any]) -> str:
    rows = [f"| {_label(parameter)} | {_text(parameter.help or '')} |" for parameter in parameters]
    return "\n".join([f"| {what} | meaning |", "|---|---|", *rows]) + "\n"


def _label(parameter: Any) -> str:
    if not _is_option(parameter):
        return f"`{_placeholder(parameter)}`"
    names = " ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag or parameter.count else f"{names} `{_value(parameter)}`"


def _placeholder(argument: Any) -> str:
    value = _value(argument) + ("..." if argument.nargs == -1 else "")
    return value if argument.required else f"[{value}]"


def _value(parameter: Any) -> str:
    return parameter.metavar or (parameter.name or "").upper().replace("_", "-")


def _is_option(parameter: Any) -> bool:
    return parameter.opts[0].startswith("-")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def _anchor(name: str) -> str:
    return f"tritgguf-{name}"


def _text(text: str) -> str:
    """Return words of the help as Markdown: outside of code, signs that it or HTML would take for markup stay signs."""
    parts = text.strip().split("`")
    parts[::2] = [re.sub(r"[\\|<>*\[\]]", r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(command_reference(), encoding="utf-8")
