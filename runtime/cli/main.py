"""The `tritgguf` command: runs a subcommand, prints an error as one line."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.cli import standard_streams, terminal
from tritgguf.runtime.cli.command import commands
from tritgguf.runtime.cli.verbosity import with_verbosity

DEBUG_VARIABLE = "TRITGGUF_DEBUG"
INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C
# Must run the same cleanup as Ctrl-C, or a half-written file is left behind where files have names from the start.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # imported here: it would slow down the help by a tenth

        versions = (f"{name} {metadata.version(name)}" for name in ("tritgguf", "llama-cpp-python", "gguf"))
        typer.echo(", ".join(versions))
        from tritgguf.runtime.engine.backend import cpu_kernels  # as late as that: it loads llama.cpp

        typer.echo(f"CPU kernels: {cpu_kernels()}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Show tracebacks and llama.cpp's log.")
    ] = False,
) -> None:
    """Convert ternary language models to GGUF and run them."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def application() -> typer.Typer:
    """Return the Typer application with all commands."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},  # of every command
    )
    app.callback()(_options)
    for name, command in commands().items():
        app.command(name)(_interruptible(with_verbosity(command.function)))
    return app


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with one exit code for Ctrl-C; Typer's own differs between versions."""

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 success, 1 error or closed pipe, 2 wrong usage, 130 Ctrl-C, 129 SIGHUP, 143 SIGTERM.
    """
    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    # No command uses numpy's BLAS, which would start a thread per core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    standard_streams.prepare()
    terminal.protect()
    try:
        try:
            application()()
        except SystemExit:
            standard_streams.flush()
            raise
    except KeyboardInterrupt:  # before or after the command itself
        sys.exit(INTERRUPTED)
    except TritggufError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr)
        with contextlib.suppress(TritggufError):
            standard_streams.flush()
        sys.exit(1)


def _stop(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # the shell's code for a program ended by a signal
