"""`tritgguf chat`: answers --prompt or standard input, or holds a conversation on the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Timer
from typing import Annotated

import typer

import tritgguf.runtime
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.conversation import Conversation
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.console import Console
from tritgguf.runtime.engine.sampling import Sampling

DEFAULTS = Sampling()
DEMO_MODEL = Path("models/demo.gguf")  # what `make demo` writes
NOTICE_SECONDS = 2.0  # without a notice, waiting for a pipe that stays open looks like a hang


def chat(
    model: Annotated[Path, typer.Argument(help="GGUF file (default: the one that `make demo` writes).")] = DEMO_MODEL,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Answer this message and exit; piped input is appended. Repeat it for further turns."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of the conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop an answer after this many tokens.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Randomness of the sampling; 0 always takes the most probable token.")
    ] = DEFAULTS.temperature,
    top_p: Annotated[
        float, typer.Option(help="Keep the most probable tokens up to this total probability; 1 turns it off.")
    ] = DEFAULTS.top_p,
    top_k: Annotated[
        int, typer.Option(help="Keep this many of the most probable tokens; 0 turns it off.")
    ] = DEFAULTS.top_k,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this fraction of the highest probability; 0 turns it off.")
    ] = DEFAULTS.min_p,
    repeat_penalty: Annotated[
        float, typer.Option(help="Above 1, make recent tokens less probable; 1 turns it off.")
    ] = DEFAULTS.repeat_penalty,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling (default: random).")] = None,
    ctx: Annotated[
        int | None, typer.Option(help="Context size in tokens (default: 4096, or the model's if smaller).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of threads (default: one per physical core).")] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(min=0, help="Number of layers on the GPU (default: all if there is one).")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens per second at the end.")] = False,
) -> None:
    """Chat with a model, or answer --prompt or piped input and exit."""
    sampling = Sampling(temperature, top_p, top_k, min_p, repeat_penalty, seed)
    if model == DEMO_MODEL and not model.exists():
        raise EngineError(f"no model given, and {DEMO_MODEL} doesn't exist: give a GGUF file, or run `make demo` first")
    texts = _one_shot_texts(prompt or [])
    _prepare_native_library()
    with tritgguf.runtime.open(model, n_ctx=ctx, n_threads=threads, n_gpu_layers=gpu_layers) as session:
        conversation = Conversation(session, system=system, max_tokens=max_tokens, **vars(sampling))
        console = Console(conversation, show_stats=stats)
        if texts:
            console.answer(texts)
        else:
            console.converse()


def _one_shot_texts(prompts: list[str]) -> list[str]:
    """Return the messages of --prompt, the last one with piped input appended; none for a conversation."""
    piped = _piped_text()
    if not prompts and piped is None:
        return []
    *texts, last = prompts or [""]
    texts.append("\n\n".join(part for part in (last, piped) if part))
    if not all(text.strip() for text in texts):
        raise EngineError("nothing to answer: --prompt and standard input are empty")
    return texts


def _piped_text() -> str | None:
    """Return the text of standard input; None if it is a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
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
