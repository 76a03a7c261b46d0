"""How much a command says beside its results and errors: -q leaves out progress and notes, -v adds details.

All of it goes to standard error. One setting for the whole process, as long as a command runs.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.sizes import format_size

_QUIET, _NORMAL, _VERBOSE = range(3)
_level = _NORMAL

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only, no progress or notes.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print what is read, chosen and how long it takes to standard error.")
]


def is_quiet() -> bool:
    """Whether progress and notes are unwanted."""
    return _level == _QUIET


def is_verbose() -> bool:
    """Whether details are wanted."""
    return _level == _VERBOSE


def note(text: str) -> None:
    """Print a note unless the command is quiet."""
    if not is_quiet():
        print(f"note: {text}", file=sys.stderr)


def detail(text: str) -> None:
    """Print a detail if the command is verbose."""
    if is_verbose():
        print(text, file=sys.stderr, flush=True)


def with_verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with the options --quiet and --verbose."""

    @functools.wraps(command)
    def run(*args: object, quiet: bool = False, verbose: bool = False, **options: object) -> None:
        global _level
        if quiet and verbose:
            raise typer.BadParameter("give only one of both", param_hint="--quiet, --verbose")
        _level, before, started = _QUIET if quiet else _VERBOSE if verbose else _NORMAL, _level, time.monotonic()
        try:
            command(*args, **options)
            detail(f"took {time.monotonic() - started:.2f} s in all")
        finally:
            _level = before

    signature = inspect.signature(command, eval_str=True)  # Typer reads it, and not what it wraps
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("quiet", Quiet), ("verbose", Verbose))
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    return run


@contextmanager
def stage_lines(unit: str) -> Iterator[Progress]:
    """Yield a progress callback that prints a line when a stage has ended: how much, in `unit`, and its seconds."""
    current, n_done, started = "", 0, time.monotonic()

    def end() -> None:
        if current:
            size = format_size(n_done) if unit == "bytes" else f"{n_done} {unit}"
            detail(f"{current}: {size} in {time.monotonic() - started:.2f} s")

    def report(stage: str, done: int, total: int) -> None:
        nonlocal current, n_done, started
        if stage != current:
            end()
            current, started = stage, time.monotonic()
        n_done = done

    try:
        yield report
    finally:
        end()
