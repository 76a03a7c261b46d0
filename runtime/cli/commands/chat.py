"""`tritgguf chat`: answers --prompt or standard input, or holds a conversation on the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Timer
from typing import Annotated, Any

import typer

import tritgguf.runtime
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.conversation import Conversation
from tritgguf.runtime.cli import options
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.console import Console
from tritgguf.runtime.cli.model_argument import local_model
from tritgguf.runtime.engine.sampling import Sampling

DEFAULTS = Sampling()
DEMO_MODEL = Path("models/demo.gguf")  # what `make demo` writes
PIPED = "-"  # the --prompt that stands for standard input
NOTICE_SECONDS = 2.0  # without a notice, waiting for a pipe that stays open looks like a hang


def _sampling(meaning: str, default: float) -> object:
    """The option of a setting that a file may recommend; so the default isn't one that Typer knows."""
    return typer.Option(help=f"{meaning} (default: the file's, or else {default:g}).")


def chat(
    model: Annotated[
        str,
        typer.Argument(help=f"GGUF file, or {options.ON_THE_HUB} (default: the file that `make demo` writes)."),
    ] = str(DEMO_MODEL),
    revision: options.Revision = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Answer this message and exit; - is what is piped in. Repeat it for further turns."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of the conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop an answer after this many tokens.")] = None,
    temperature: Annotated[
        float | None, _sampling("Randomness; 0 always takes the most probable token", DEFAULTS.temperature)
    ] = None,
    top_p: Annotated[
        float | None,
        _sampling("Keep the most probable tokens up to this total probability; 1 turns it off", DEFAULTS.top_p),
    ] = None,
    top_k: Annotated[
        int | None, _sampling("Keep this many of the most probable tokens; 0 turns it off", DEFAULTS.top_k)
    ] = None,
    min_p: Annotated[
        float | None,
        _sampling("Drop tokens below this fraction of the highest probability; 0 turns it off", DEFAULTS.min_p),
    ] = None,
    repeat_penalty: Annotated[
        float | None, _sampling("Above 1, make recent tokens less probable; 1 turns it off", DEFAULTS.repeat_penalty)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling (default: random).")] = None,
    ctx: Annotated[
        int | None, typer.Option(help="Context size in tokens (default: 4096, or the model's if smaller).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Number of threads (default: one per physical performance core).")
    ] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(min=0, help="Number of layers on the GPU (default: all if there is one).")
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Let a reasoning model think first, or not (default: its own)."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens per second at the end.")] = False,
) -> None:
    """Chat with a model, or answer --prompt or piped input and exit."""
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    settings |= {"repeat_penalty": repeat_penalty, "seed": seed}
    asked: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    Sampling(**asked)  # checks them before the model is loaded
    if Path(model) == DEMO_MODEL and not DEMO_MODEL.exists():
        raise EngineError(f"no model given, and {DEMO_MODEL} doesn't exist: give a GGUF file, or run `make demo` first")
    file = local_model(model, revision, prefer="gguf")
    texts = _one_shot_texts(prompt or [])
    _prepare_native_library()
    from tritgguf.runtime.chat.recommended_sampling import complete_sampling  # not at the top, like the library

    with tritgguf.runtime.open(file, n_ctx=ctx, n_threads=threads, n_gpu_layers=gpu_layers) as session:
        sampling = complete_sampling(session.model, asked)
        conversation = Conversation(session, system=system, think=think, max_tokens=max_tokens, **sampling)
        console = Console(conversation, show_stats=stats)
        if texts:
            console.answer(texts)
        else:
            console.converse()


def _one_shot_texts(prompts: list[str]) -> list[str]:
    """Return the messages of --prompt, or else what is piped in; none for a conversation.

    Beside other messages standard input is left alone: it may be a script's own, or never end.
    """
    if not prompts and (sys.stdin is None or sys.stdin.isatty()):
        return []
    prompts = prompts or [PIPED]
    if prompts.count(PIPED) > 1:
        raise EngineError("--prompt - is given twice, but standard input can be read once: give it once")
    texts = [_standard_input() if prompt == PIPED else prompt for prompt in prompts]
    if not all(text.strip() for text in texts):
        raise EngineError("nothing to answer: --prompt or standard input is empty")
    return texts


def _standard_input() -> str:
    if sys.stdin is None:
        raise EngineError("standard input is closed, expected a text to answer")
    notice = Timer(NOTICE_SECONDS, print, ["reading standard input until it is closed"], {"file": sys.stderr})
    notice.daemon = True
    notice.start()
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise EngineError(f"standard input isn't UTF-8 text (byte {error.start}: {error.reason})") from error
    finally:
        notice.cancel()


def _prepare_native_library() -> None:
    from tritgguf.runtime.engine import backend  # not at the top: the help doesn't need the native library

    backend.exit_on_native_abort()
    if os.environ.get("TRITGGUF_DEBUG"):
        backend.show_native_log()


COMMAND = Command("chat", chat, rank=2)
