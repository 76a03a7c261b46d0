"""Runs a page of docs/tutorials as its reader would: commands and Python code, from top to bottom in one folder.

A ```console block has commands after `$ ` and what they print; a ```python block may have a ```text block with what it
prints right behind it. `…` in what is shown stands for anything in a line, and alone on a line for any lines; it is for
what the machine or the real model decides: times, sizes, types. A command whose shown output has a line that begins
"error: " must exit with 1, any other with 0.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import run

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = ("console", "python")


@dataclass(frozen=True)
class Step:
    """A command or a piece of Python, where it stands ("page:line"), and the output that the page shows, if it does."""

    place: str
    language: str
    code: str
    shown: str | None


def steps(page: Path) -> Iterator[Step]:
    """Yield what the page has its reader run, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    for number, block in enumerate(blocks):
        place = f"{page.name}:{text.count(chr(10), 0, block.start()) + 1}"
        following = blocks[number + 1] if number + 1 < len(blocks) else None
        if block[1] == "console":
            yield from _commands(place, block[2])
        elif block[1] == "python":
            shown = (
                following is not None and following[1] == "text" and not text[block.end() : following.start()].strip()
            )
            yield Step(place, "python", block[2], following[2] if shown and following else None)
        else:
            assert block[1] == "text", f"{place}: a block of a tutorial is {', '.join(RUN)} or text, not {block[1]!r}"


def _commands(place: str, text: str) -> Iterator[Step]:
    first, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first, f"{place}: a console block starts with a command after `$ `"
    for part in parts:
        command, _, shown = part.partition("\n")
        yield Step(place, "console", command, shown)


def differences(page: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a page in the current folder; return what goes otherwise than it says: where, what and the output."""
    names: dict[str, object] = {"__name__": "tutorial"}
    found = []
    for step in steps(page):
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n", write_through=True)
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", printed)
            patch.setattr("sys.stderr", printed)
            code = _run(step, names, patch)
        output = printed.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
        fails = bool(re.search("^error: ", step.shown or "", re.MULTILINE))
        if code != fails:
            found.append(f"{step.place}: {step.code}\nexit code {code}\n{output}")
        elif step.shown is not None and not matches(step.shown, output):
            found.append(f"{step.place}: {step.code}\nprints\n{output}\ninstead of\n{step.shown}")
    return found


def _run(step: Step, names: dict[str, object], patch: pytest.MonkeyPatch) -> int:
    if step.language == "python":
        exec(compile(step.code, step.place, "exec"), names)
        return 0
    program, *arguments = shlex.split(step.code, comments=True)
    assert program == "tritgguf", f"{step.place}: a tutorial's commands are tritgguf's, not {program}"
    return run(patch, *arguments)


def matches(shown: str, output: str) -> bool:
    """Whether output is as shown: … in a line is any text, … alone any lines; spaces at line ends don't count."""
    lines = [line.rstrip() for line in shown.strip().splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r" *\n" for line in lines)
    return re.fullmatch(pattern, output.strip() + "\n" if output.strip() else "") is not None
