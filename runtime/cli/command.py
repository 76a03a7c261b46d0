"""What a command is. Each module in `runtime/cli/commands/` defines one as `COMMAND`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tritgguf.converter.core.registry import offered


@dataclass(frozen=True)
class Command:
    """A subcommand of `tritgguf`; Typer makes its help from the function's docstring and parameters.

    `rank` orders the commands in `tritgguf --help`; equal ranks are sorted by name.
    """

    name: str
    function: Callable[..., Any]
    rank: int = 100


def commands() -> dict[str, Command]:
    """Return every command by its name, in the order of the help."""
    found = offered("tritgguf.runtime.cli.commands", "COMMAND", Command)
    return {command.name: command for command in sorted(found, key=lambda command: (command.rank, command.name))}
