"""A conversation on a terminal, or one answer: answers go to standard output, all else to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.conversation import Answer, Conversation

PROMPT = "> "
HELP = """\
/system TEXT   set the system message; without TEXT show it
/reset         forget the conversation, keep the system message
/help          show this
/exit          leave (also Ctrl-D)
Ctrl-C stops an answer."""


class Console:
    """Reads questions and commands, streams answers."""

    def __init__(self, conversation: Conversation, *, show_stats: bool) -> None:
        self._conversation = conversation
        self._session = conversation.session
        self._show_stats = show_stats
        self._totals = [0, 0.0, 0, 0.0]  # prompt tokens and seconds, generated tokens and seconds

    def answer(self, texts: Sequence[str]) -> None:
        """Answer the texts in turn, each shown first where there are several; Ctrl-C raises KeyboardInterrupt."""
        try:
            for text in texts:
                if len(texts) > 1:
                    _note(PROMPT + text)
                self._stream(self._conversation.ask(text))
        finally:
            self._print_stats()

    def converse(self) -> None:
        """Question and answer until /exit or Ctrl-D; an error in one turn doesn't end the conversation."""
        with contextlib.suppress(ImportError):  # gives input() line editing and history; not on Windows
            import readline  # noqa: F401
        self._introduce()
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    break
            elif line:
                self._turn(line)
        self._print_stats()

    def _introduce(self) -> None:
        _note(f"{self._session.model.description}, context {self._session.n_ctx} tokens; /help lists the commands")
        if not self._session.has_chat_template:
            _note("This file has no chat template (a base model): it continues each text you type, without a history.")
            if self._conversation.system:
                _note("The system message has no effect.")

    def _read(self) -> str | None:
        """The next line, "" after Ctrl-C, None at the end of input."""
        try:
            return input(PROMPT).strip()
        except EOFError:
            _note("")
            return None
        except KeyboardInterrupt:
            _note("\nTo leave, type /exit or press Ctrl-D.")
            return ""
        except UnicodeDecodeError:
            _note("That line isn't valid UTF-8.")
            return ""

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
            turns = "turn" if answer.dropped_turns == 1 else "turns"
            _note(f"(the context is full: the {answer.dropped_turns} oldest {turns} dropped)")
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

    def _command(self, line: str) -> bool:
        """Obey a /command; False if it ends the conversation."""
        name, _, argument = line.partition(" ")
        if name == "/help":
            _note(HELP)
        elif name == "/reset":
            self._conversation.reset()
            _note("(conversation forgotten)")
        elif name == "/system":
            self._set_system(argument.strip())
        elif name != "/exit":
            _note(f"unknown command {name}; /help lists the commands")
        return name != "/exit"

    def _set_system(self, text: str) -> None:
        if not self._session.has_chat_template:
            _note("This file has no chat template: a system message has no effect.")
        elif not text:
            _note(self._conversation.system or "(no system message)")
        else:
            self._conversation.system = text
            _note("(system message set; /reset forgets what was said before)")

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


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
