"""The words of every command's help, compared with recorded ones and with docs/commands.md, so that a change of them is
seen and meant.

To record them again: TRITGGUF_RECORD_HELP=1 python -m pytest tests/runtime/cli/test_help.py
"""

import os
from pathlib import Path

import pytest
import typer

from tests.docs.command_reference import PAGE, command_reference
from tritgguf.runtime.cli.command import commands
from tritgguf.runtime.cli.main import application

RECORDED = Path(__file__).parent / "help"


def help_text(name: str) -> str:
    """Return a command's description, arguments and options; how Typer draws them differs between its versions."""
    command = typer.main.get_command(application()).commands[name]
    lines = [f"tritgguf {name}", "", command.help, ""]
    for parameter in command.params:
        flags = "/".join([*parameter.opts, *parameter.secondary_opts])
        label = flags if flags.startswith("-") else flags.upper()
        lines.append(f"{label}: {parameter.help}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", commands())
def test_help(name: str) -> None:
    file = RECORDED / f"{name}.txt"
    if os.environ.get("TRITGGUF_RECORD_HELP"):
        file.write_text(help_text(name), encoding="utf-8")
    assert help_text(name) == file.read_text(encoding="utf-8")


def test_the_command_reference() -> None:
    if os.environ.get("TRITGGUF_RECORD_HELP"):
        PAGE.write_text(command_reference(), encoding="utf-8")
    assert command_reference() == PAGE.read_text(encoding="utf-8")


def test_every_help_text_ends_with_a_full_stop() -> None:
    app = typer.main.get_command(application())
    for name, command in app.commands.items():
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
            assert parameter.help.endswith("."), (name, parameter.name, parameter.help)
