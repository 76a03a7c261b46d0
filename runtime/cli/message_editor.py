"""Typing messages on a terminal, with prompt_toolkit: several lines, history across runs, completion of commands.

Import this only where a conversation starts: loading prompt_toolkit takes longer than printing the help.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HISTORY_VARIABLE = "TRITGGUF_HISTORY"
HISTORY_OFF = ("", "off", "no", "false", "0")


class MessageEditor:
    """Reads one message at a time; `commands` maps the name of each /command to its meaning."""

    help = (
        "Enter sends the message. Alt+Enter starts a new line; so does Enter after a backslash.\n"
        "Pasted lines stay one message. Up recalls an earlier message, Tab completes a command."
    )

    def __init__(self, prompt: str, commands: Mapping[str, str]) -> None:
        completer = CommandCompleter(commands)
        self._session = PromptSession[str](
            prompt,
            multiline=True,
            prompt_continuation=" " * len(prompt),
            key_bindings=_key_bindings(),
            history=open_history(history_path()),
            completer=completer,
            # Without a condition, every prompt would leave room for the list of completions.
            complete_while_typing=Condition(lambda: completer.applies_to(self._session.default_buffer.document)),
            enable_suspend=True,
        )

    def read(self) -> str:
        """The next message; KeyboardInterrupt on Ctrl-C, EOFError on Ctrl-D in an empty message."""
        try:
            return self._session.prompt()
        except SystemExit:  # a signal that comes while the prompt is drawn, when prompt_toolkit has nothing to undo yet
            self._session.output.disable_bracketed_paste()
            self._session.output.flush()
            raise


class CommandCompleter(Completer):
    """Completes the name of a /command at the start of the message."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands

    @staticmethod
    def applies_to(document: Document) -> bool:
        """Whether the text up to the cursor is one word that starts with a slash."""
        text = document.text_before_cursor
        return text.startswith("/") and len(text.split()) == 1 and not text[-1].isspace()

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        if not self.applies_to(document):
            return
        typed = document.text_before_cursor
        for name, meaning in self._commands.items():
            if name.startswith(typed):
                yield Completion(name, start_position=-len(typed), display_meta=meaning)


class PrivateHistory(FileHistory):
    """A history file; a message that can't be written, for instance on a full disk, is kept for this run only."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def history_path() -> Path | None:
    """The history file: TRITGGUF_HISTORY, or chat_history in the user's folder for state; None if there is none."""
    named = os.environ.get(HISTORY_VARIABLE)
    if named is not None:
        return None if named.strip().lower() in HISTORY_OFF else Path(named)
    try:
        path = platformdirs.user_state_path("tritgguf", appauthor=False) / "chat_history"
    except RuntimeError:  # the user has no home folder
        return None
    return path if path.is_absolute() else None  # older versions of platformdirs then return a path that starts with ~


def open_history(path: Path | None) -> History:
    """Open the history file at `path`; if there is none or it can't be used, keep the history for this run only.

    A new file gets mode 0600, because messages can be private.
    """
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return PrivateHistory(path)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):  # terminals on Windows take Alt+Enter for themselves
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings
