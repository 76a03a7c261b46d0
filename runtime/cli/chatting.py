"""What `chat` and `run` share: the options of a conversation, and holding it with a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tritgguf.runtime
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.conversation import Conversation
from tritgguf.runtime.cli import placing, verbosity
from tritgguf.runtime.cli.console import Console
from tritgguf.runtime.cli.native_library import prepare_native_library
from tritgguf.runtime.engine.sampling import Sampling

if TYPE_CHECKING:
    from tritgguf.runtime.chat.session import Session
    from tritgguf.runtime.engine.placement import Placement

DEFAULTS = Sampling()
PIPED = "-"  # the --prompt that stands for standard input
NOTICE_SECONDS = 2.0  # without a notice, waiting for a pipe that stays open looks like a hang


def _sampling(meaning: str, default: float) -> Any:  # noqa: ANN401 - what Typer calls an option
    """Return the option of a setting that a file may recommend; so the default isn't one that Typer knows."""
    return typer.Option(help=f"{meaning} (default: the file's, or else {default:g}).")


Prompt = Annotated[
    list[str] | None,
    typer.Option(help="Answer this message and exit; - is what is piped in. Repeat it for further turns."),
]
System = Annotated[str | None, typer.Option(help="System message of the conversation.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Stop an answer after this many tokens.")]
Temperature = Annotated[
    float | None, _sampling("Randomness; 0 always takes the most probable token", DEFAULTS.temperature)
]
TopP = Annotated[
    float | None,
    _sampling("Keep the most probable tokens up to this total probability; 1 turns it off", DEFAULTS.top_p),
]
TopK = Annotated[int | None, _sampling("Keep this many of the most probable tokens; 0 turns it off", DEFAULTS.top_k)]
MinP = Annotated[
    float | None,
    _sampling("Drop tokens below this fraction of the highest probability; 0 turns it off", DEFAULTS.min_p),
]
RepeatPenalty = Annotated[
    float | None, _sampling("Above 1, make recent tokens less probable; 1 turns it off", DEFAULTS.repeat_penalty)
]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling (default: random).")]
Ctx = Annotated[int | None, typer.Option(help="Context size in tokens (default: 4096, or the model's if smaller).")]
Threads = Annotated[int | None, typer.Option(help="Number of threads (default: one per physical performance core).")]
Think = Annotated[
    bool | None,
    typer.Option("--think/--no-think", help="Let a reasoning model think first, or not (default: its own)."),
]
JsonSchema = Annotated[Path | None, typer.Option(help="Answer with JSON that the schema in this file allows.")]
AnswerGrammar = Annotated[
    Path | None, typer.Option("--grammar", help="Answer with text that the grammar (GBNF) in this file allows.")
]
Stats = Annotated[bool, typer.Option("--stats", help="Print tokens per second at the end.")]


@dataclass(frozen=True)
class Chat:
    """What the options ask for.

    `texts` are the messages to answer, none for a conversation; `settings` those of the sampling that were given, and
    what the answer must look like.
    """

    texts: Sequence[str]
    settings: dict[str, Any]
    system: str | None
    max_tokens: int | None
    think: bool | None
    stats: bool

    def hold(self, file: Path, *, ctx: int | None, threads: int | None, placement: Placement) -> None:
        """Answer the texts, or hold a conversation on the terminal, with the model in a GGUF file."""
        prepare_native_library()
        placing.note_limits(placement, [file], ctx)
        from tritgguf.runtime.chat.recommended_sampling import complete_sampling  # not at the top, like the library

        started = time.monotonic()
        with tritgguf.runtime.open(file, n_ctx=ctx, n_threads=threads, **vars(placement)) as session:
            sampling = complete_sampling(session.model, self.settings)
            _print_details(session, time.monotonic() - started, sampling)
            conversation = Conversation(
                session, system=self.system, think=self.think, max_tokens=self.max_tokens, **sampling
            )
            console = Console(conversation, show_stats=self.stats)
            if self.texts:
                console.answer(self.texts)
            else:
                console.converse()


def _print_details(session: Session, seconds: float, sampling: Mapping[str, object]) -> None:
    verbosity.detail(f"loaded {session.model.path} in {seconds:.2f} s: {session.model.description}")
    verbosity.detail(f"context {session.n_ctx} tokens, {session.context.n_threads} threads")
    verbosity.detail(f"layers: {session.model.layers_in_words}")
    verbosity.detail(f"CPU kernels: {session.cpu_kernels}")
    verbosity.detail("sampling: " + ", ".join(f"{name} {value}" for name, value in sampling.items()))


def checked(sampling: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the settings of Sampling that were given; raise EngineError if one is out of range."""
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    Sampling(**given)
    return given


def one_shot_texts(prompts: Sequence[str] | None) -> list[str]:
    """Return the messages of --prompt, or else what is piped in; none for a conversation.

    Beside other messages standard input is left alone: it may be a script's own, or never end.
    """
    if not prompts and (sys.stdin is None or sys.stdin.isatty()):
        return []
    prompts = list(prompts or [PIPED])
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
