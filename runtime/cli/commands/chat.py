"""`tritgguf chat`: one answer from --prompt or standard input, or a conversation on the terminal."""

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
NOTICE_SECONDS = 2.0  # a pipe that nobody closes would look like a hang


def chat(
    model: Annotated[Path, typer.Argument(help="GGUF file; default: the demo's.")] = DEMO_MODEL,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Answer this text and exit; piped input is appended. Given again: the next turn."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, said before the conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="End an answer after this many tokens.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = DEFAULTS.temperature,
    top_p: Annotated[float, typer.Option(help="Likeliest tokens up to this probability; 1 is off.")] = DEFAULTS.top_p,
    top_k: Annotated[int, typer.Option(help="This many likeliest tokens; 0 is off.")] = DEFAULTS.top_k,
    min_p: Annotated[float, typer.Option(help="Least probability relative to the best; 0 is off.")] = DEFAULTS.min_p,
    repeat_penalty: Annotated[float, typer.Option(help="Above 1 repeats less.")] = DEFAULTS.repeat_penalty,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text; default: random.")] = None,
    ctx: Annotated[int | None, typer.Option(help="Context in tokens; default: 4096 or what the model has.")] = None,
    threads: Annotated[int | None, typer.Option(help="Default: the physical cores available.")] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(min=0, help="Layers on the GPU; default: all if there is one.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens per second at the end.")] = False,
) -> None:
    """Chat with a model, or answer one --prompt or standard input."""
    sampling = Sampling(temperature, top_p, top_k, min_p, repeat_penalty, seed)
    if model == DEMO_MODEL and not model.exists():
        raise EngineError(f"no model named, and no {DEMO_MODEL} here: name a GGUF file, or run `make demo` first")
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
    """The messages from --prompt, the last with piped input; none for a conversation on the terminal."""
    piped = _piped_text()
    if not prompts and piped is None:
        return []
    *texts, last = prompts or [""]
    texts.append("\n\n".join(part for part in (last, piped) if part))
    if not all(text.strip() for text in texts):
        raise EngineError("nothing to answer: --prompt and standard input are empty")
    return texts


def _piped_text() -> str | None:
    """What standard input holds, if it isn't a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    notice = Timer(NOTICE_SECONDS, print, ["reading standard input until it ends"], {"file": sys.stderr})
    notice.daemon = True
    notice.start()
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise EngineError(f"standard input isn't UTF-8 text (byte {error.start}: {error.reason})") from error
    finally:
        notice.cancel()


def _prepare_native_library() -> None:
    from tritgguf.runtime.engine import backend  # not at the top: the help should not wait for the native library

    backend.exit_on_native_abort()
    if os.environ.get("TRITGGUF_DEBUG"):
        backend.show_native_log()


COMMAND = Command("chat", chat, rank=2)
