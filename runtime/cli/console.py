"""A conversation on a terminal, or one answer: answers go to standard output, notes to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Protocol

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.conversation import Answer, Conversation
from tritgguf.runtime.cli.verbosity import is_quiet

PROMPT = "> "
COMMANDS = {  # name: (argument, meaning)
    "/system": ("TEXT", "set the system message; without TEXT, show it"),
    "/reset": ("", "clear the conversation, keep the system message"),
    "/help": ("", "show this help (also /?)"),
    "/exit": ("", "end the conversation (also /bye, /quit or Ctrl-D)"),
}
ALIASES = {"/?": "/help", "/bye": "/exit", "/quit": "/exit"}


class Reader(Protocol):
    """Reads messages from the terminal."""

    help: str

    def read(self) -> str:
        """The next message; KeyboardInterrupt on Ctrl-C, EOFError at the end of input."""


class Console:
    """Reads messages and commands from the terminal and prints the answers as they are generated."""

    def __init__(self, conversation: Conversation, *, show_stats: bool) -> None:
        self._conversation = conversation
        self._session = conversation.session
        self._show_stats = show_stats
        self._totals = [0, 0.0, 0, 0.0]  # prompt tokens and seconds, generated tokens and seconds

    def answer(self, texts: Sequence[str]) -> None:
        """Answer the texts one after the other, printing each of several first; Ctrl-C raises KeyboardInterrupt."""
        self._note_what_has_no_effect()
        try:
            for text in texts:
                if len(texts) > 1 and not is_quiet():
                    _note(PROMPT + text)
                self._stream(self._conversation.ask(text))
        finally:
            self._print_stats()

    def converse(self) -> None:
        """Read and answer messages until /exit or Ctrl-D; an error in one turn is printed and doesn't end it."""
        self._introduce()
        reader = _reader()
        while (text := _read(reader)) is not None:
            if command := _command(text):
                if not self._run(*command, reader):
                    break
            elif text:
                self._turn(text)
        self._print_stats()

    def _introduce(self) -> None:
        if is_quiet():
            return
        _note(f"{self._session.model.description}, context {self._session.n_ctx} tokens; /help lists the commands")
        if not self._session.has_chat_template:
            _note("This is a base model (it has no chat template): it continues each text you type, without a history.")
        self._note_what_has_no_effect()

    def _note_what_has_no_effect(self) -> None:
        if is_quiet():
            return
        conversation, has_template = self._conversation, self._session.has_chat_template
        if conversation.system and not has_template:
            _note("note: the system message has no effect: this is a base model (it has no chat template)")
        if conversation.think is not None and not (has_template and self._session.template.knows_thinking):
            why = "its chat template doesn't read enable_thinking" if has_template else "it has no chat template"
            _note(f"note: --think and --no-think have no effect on this file: {why}")

    def _turn(self, text: str) -> None:
        try:
            self._stream(self._conversation.ask(text))
        except KeyboardInterrupt:
            print()
            _note("(stopped)")
        except TritggufError as error:
            _note(f"error: {error}")

    def _stream(self, answer: Answer) -> None:
        if answer.dropped_turns:
            turns = "turn" if answer.dropped_turns == 1 else f"{answer.dropped_turns} turns"
            _note(f"(the context is full: dropped the oldest {turns})")
        try:
            for piece in answer:
                sys.stdout.write(piece)
                sys.stdout.flush()
            print(flush=True)
        finally:
            answer.close()
            self._count()
        if answer.finish == "context":
            _note(f"(cut off: the context of {self._session.n_ctx} tokens is full)")
        elif answer.finish == "max_tokens":
            _note("(cut off: --max-tokens reached)")

    def _run(self, name: str, argument: str, reader: Reader) -> bool:
        """Run a /command; False if it ends the conversation."""
        if name == "/help":
            _note(_help(reader))
        elif name == "/reset":
            self._conversation.reset()
            _note("(conversation cleared)")
        elif name == "/system":
            self._set_system(argument)
        return name != "/exit"

    def _set_system(self, text: str) -> None:
        if not self._session.has_chat_template:
            _note("This file has no chat template: a system message has no effect.")
        elif not text:
            _note(self._conversation.system or "(no system message)")
        else:
            self._conversation.system = text
            _note("(system message set; /reset clears the earlier turns)")

    def _count(self) -> None:
        stats = self._session.stats
        costs = (stats.n_prompt - stats.n_cached, stats.prompt_seconds, stats.n_evaluated, stats.generation_seconds)
        self._totals = [total + cost for total, cost in zip(self._totals, costs, strict=True)]

    def _print_stats(self) -> None:
        if not self._show_stats:
            return
        n_prompt, prompt_seconds, n_generated, generation_seconds = self._totals
        for what, n_tokens, seconds in (
            ("prompt", n_prompt, prompt_seconds),
            ("generation", n_generated, generation_seconds),
        ):
            rate = n_tokens / seconds if seconds else 0.0
            _note(f"{what}: {n_tokens} tokens in {seconds:.2f} s, {rate:.1f} tokens/s")
        _note(f"CPU kernels: {self._session.cpu_kernels}")
        if self._session.model.uses_devices:
            _note(f"layers: {self._session.model.layers_in_words}")


class PlainReader:
    """Reads one line per message, where prompt_toolkit can't draw.

    That is a dumb terminal, or standard output that isn't a terminal. input() echoes and edits the line there.
    """

    help = "Enter sends the message."

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # gives input() line editing; Windows doesn't have it
            import readline  # noqa: F401

    def read(self) -> str:
        """The next line; KeyboardInterrupt on Ctrl-C, EOFError at the end of input."""
        try:
            return input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            _note("")  # the cursor is still on the line of the prompt
            raise


def _reader() -> Reader:
    from prompt_toolkit.utils import is_dumb_terminal  # not at the top: the help should not wait for it

    if is_dumb_terminal() or not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainReader()
    from tritgguf.runtime.cli.message_editor import MessageEditor

    return MessageEditor(PROMPT, {name: meaning for name, (_, meaning) in COMMANDS.items()})


def _read(reader: Reader) -> str | None:
    """The next message, "" after Ctrl-C, None at the end of input."""
    try:
        text = reader.read()
        text.encode("utf-8")  # prompt_toolkit gives bytes that aren't UTF-8 as lone surrogates
    except EOFError:
        return None
    except KeyboardInterrupt:
        _note("To leave, type /exit or press Ctrl-D.")
        return ""
    except UnicodeError:
        _note("That message isn't valid UTF-8.")
        return ""
    return text.strip()


def _command(text: str) -> tuple[str, str] | None:
    """Return the name and the argument of a /command; None for a message.

    Many messages start with a slash: paths, pasted code, Qwen3's /no_think. So one with words behind a command that
    takes none is a message too.
    """
    name, argument = [*text.split(maxsplit=1), "", ""][:2]
    name = ALIASES.get(name, name)
    if name not in COMMANDS or (argument and not COMMANDS[name][0]):
        return None
    return name, argument


def _help(reader: Reader) -> str:
    lines = [f"{f'{name} {argument}':<15}{meaning}" for name, (argument, meaning) in COMMANDS.items()]
    return "\n".join([*lines, reader.help, "Ctrl-C stops an answer."])


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
