"""A command is one new file in runtime/cli/commands/."""

import re
import subprocess
import sys
from pathlib import Path

from tritgguf.runtime.cli.command import commands

GREET = '''
"""`tritgguf greet`."""

from typing import Annotated

import typer

from tritgguf.converter.errors import UnsupportedError
from tritgguf.runtime.cli.command import Command


def greet(name: Annotated[str, typer.Argument(help="Whom to greet.")]) -> None:
    """Say hello."""
    if name == "nobody":
        raise UnsupportedError("nobody is there")
    print(f"Hello {name}!")


COMMAND = Command("greet", greet)
'''
PROGRAM = """
import sys
from tritgguf.runtime.cli import commands
commands.__path__.append(sys.argv.pop(1))
from tritgguf.runtime.cli.main import main
main()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `tritgguf ARGUMENTS` in a new process, with the modules in `folder` as further commands."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"COLUMNS": "100", "PYTHONUTF8": "1"}
    )


def test_a_file_adds_a_command(tmp_path: Path) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    done = run(tmp_path, "greet", "you")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello you!\n", "")
    done = run(tmp_path, "greet", "nobody")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: nobody is there\n")
    assert "Whom to greet." in run(tmp_path, "greet", "--help").stdout


def test_the_help_lists_the_commands_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    shown = run(tmp_path, "--help").stdout
    listed = re.findall(r"^[│ ] ([\w-]+)  ", shown.partition("Commands")[2], re.M)
    assert listed == [*commands(), "greet"]
    first = ["run", "convert", "chat", "inspect", "verify", "ollama"]
    assert [name for name in listed if name in first] == first


def test_a_file_without_a_command_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    done = run(tmp_path, "--help")
    assert done.returncode != 0
    assert "tritgguf.runtime.cli.commands.empty must define COMMAND, a Command" in done.stderr
