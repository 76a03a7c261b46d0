"""What a terminal gets to see of texts with control characters, and what a pipe gets."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path

import pytest
from rich.table import Table

from tests.terminal import PROGRAM, Terminal
from tritgguf.runtime.cli import terminal
from tritgguf.runtime.cli.tables import TableConsole

posix = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
# Sets the window's title, clears the screen, both in C0 and in C1, hides text, goes back, turns the direction.
HOSTILE = "\x1b]0;title\x07 \x1b[2J \x9b2J \x1b[8m \b\b \r \u202e \u2066"
SHOWN = r"\x1b]0;title\x07 \x1b[2J \x9b2J \x1b[8m \x08\x08 \x0d \u202e \u2066"
FAILING = "{{ raise_exception(" + repr(HOSTILE.replace("\r", "")) + ") }}"


def environment() -> dict[str, str]:
    return {**os.environ, "TRITGGUF_DEBUG": "", "TERM": "xterm", "PYTHONUTF8": "1"}


def screen(*arguments: object) -> str:
    """Everything that `tritgguf` writes to a terminal, with the terminal's line ends as "\\n"."""
    with Terminal(*arguments, env=environment()) as program:
        program.wait()
        seen = b""
        with contextlib.suppress(OSError):  # the terminal's end, or nothing more to read
            while data := os.read(program.master, 65536):
                seen += data
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("Grüße 你好 🙂 עברית\u200f \u2028", "Grüße 你好 🙂 עברית\u200f \u2028"),
        (HOSTILE, SHOWN),
        ("two\r\nlines\r\n", "two\nlines\n"),
        ("\0\x7f\x85", r"\x00\x7f\x85"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert terminal.printable(text) == shown


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tables_and_what_is_printed_beside_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Screen()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    terminal.protect()
    table = Table("tensor", box=None)
    table.add_row(HOSTILE)
    TableConsole().print(table)
    print(HOSTILE)
    written = re.sub(r"\x1b\[[013]*m", "", output.getvalue())  # rich's own bold
    assert r"\x1b]0;title\x07 \x1b[2J" in written
    assert written.endswith(f"{SHOWN}\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", written)


def test_pipes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    terminal.protect()
    print(HOSTILE, end="")
    table = Table("tensor", box=None)
    table.add_row("a\x1bb")
    TableConsole(width=100).print(table)
    assert output.getvalue().startswith(HOSTILE)
    assert "a\x1bb" in output.getvalue()


@posix
def test_a_models_text(speaking_model) -> None:
    model = speaking_model([0x1B, *b"]0;evi", 0x07, *b"!"])
    arguments = ["chat", model, "--prompt", "Hi", "--temperature", 0]
    assert screen(*arguments) == "\\x1b]0;evi\\x07!\n"
    piped = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, env=environment(), timeout=60, input=b""
    )
    assert piped.stdout == b"\x1b]0;evi\x07!\n"


@posix
def test_errors_of_templates_names_of_files_and_wrong_usage(make_model, tmp_path: Path) -> None:
    failing = make_model(tmp_path / "failing.gguf", template=FAILING)
    for arguments in (
        ["chat", failing, "--prompt", "Hi"],
        ["inspect", tmp_path / f"{HOSTILE.replace(chr(13), '')}.gguf"],
        ["inspect", failing, f"wrong{HOSTILE}"],
    ):
        seen = screen(*arguments)
        assert r"\x1b]0;title\x07" in seen
        own = re.sub(r"\r|\x1b\[(\?25[hl]|1A|2K|[0-9;]*m)", "", seen)  # without the progress bar's, and colours
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", own), seen
