"""Typing messages: single keys through prompt_toolkit's own pipe, and the chat command on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.terminal import Terminal
from tritgguf.runtime.cli import console
from tritgguf.runtime.cli.message_editor import HISTORY_VARIABLE, MessageEditor, history_path, open_history

posix = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")

COMMANDS = {"/system": "set", "/reset": "forget", "/help": "show", "/exit": "leave"}
ALT_ENTER, UP, LEFT = "\x1b\r", "\x1b[A", "\x1b[D"
READY = "\x1b[?2004h"  # asks the terminal to mark pasted text; written when the program waits for keys


def pasted(text):
    return f"\x1b[200~{text}\x1b[201~"


@pytest.fixture(autouse=True)
def _history_here(monkeypatch, tmp_path):
    monkeypatch.delenv(HISTORY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def read():
    """Reads a message for each text of keys, which is typed once the prompt is shown and the history loaded."""

    def read_all(*texts):
        messages, untyped = [], list(texts)
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            editor = MessageEditor("> ", COMMANDS)

            def type_next(_):
                if len(messages) + len(untyped) == len(texts):
                    pipe.send_text(untyped.pop(0))

            editor._session.app.after_render += type_next
            while len(messages) < len(texts):
                messages.append(editor.read())
        return messages

    return read_all


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("Hi?\r", "Hi?"),
        (pasted("one\rtwo\r\nthree\nfour") + "\r", "one\ntwo\nthree\nfour"),
        (pasted("def f():\n\treturn 1\n") + "Why?\r", "def f():\n\treturn 1\nWhy?"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        (f"  one{ALT_ENTER}two\r", "  one\ntwo"),  # no indent of its own
        (f"C:\\x{LEFT}\r{ALT_ENTER}\r", "C:\n\nx"),  # the backslash before the cursor counts
        ("Grüße 日本 🙂\r", "Grüße 日本 🙂"),
        ("one\x15two\r", "two"),  # Ctrl-U
    ],
)
def test_keys_make_a_message(read, keys, message):
    assert read(keys) == [message]


def test_up_recalls_messages_and_moves_in_one_of_several_lines(read):
    assert read("one\r", "two\r", f"{UP}{UP}!\r") == ["one", "two", "one!"]
    assert read("one\r", f"two{ALT_ENTER}three{UP}!\r") == ["one", "two!\nthree"]


@pytest.mark.parametrize(("keys", "error"), [("Hi\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_ctrl_c_and_ctrl_d(read, keys, error):
    with pytest.raises(error):
        read(keys)


def test_ctrl_d_within_a_message_deletes(read):
    assert read(f"Hix{LEFT}\x04\r") == ["Hi"]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/help", ("/help", "")),
        ("/?", ("/help", "")),
        *((name, ("/exit", "")) for name in ("/exit", "/bye", "/quit")),
        ("/system Be brief.\nBe kind.", ("/system", "Be brief.\nBe kind.")),
        ("/system\nBe brief.", ("/system", "Be brief.")),
        *((text, None) for text in ("/no_think Why?", "/usr/bin/env", "/", "// a comment\nint main() {}")),
        *((text, None) for text in ("/help me", "/exit\nint main() {}", "one\n/help", "")),
    ],
)
def test_what_begins_with_a_slash_and_is_no_command_is_a_message(text, command):
    assert console._command(text) == command


def test_history_outlasts_the_run_and_is_private(read, tmp_path):
    folder = tmp_path / "state" / "tritgguf"
    assert read(f"one{ALT_ENTER}1\r", "two 🙂\r") == ["one\n1", "two 🙂"]
    assert read(f"{UP}\r") == ["two 🙂"]
    assert list(FileHistory(folder / "chat_history").load_history_strings()) == ["two 🙂", "one\n1"]
    if os.name == "posix":
        assert stat.S_IMODE((folder / "chat_history").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_history_file_can_be_named(read, tmp_path, monkeypatch):
    monkeypatch.setenv(HISTORY_VARIABLE, str(tmp_path / "mine"))
    read("one\r")
    assert "+one\n" in (tmp_path / "mine").read_text()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", ["", "off", "OFF", "0", "no", "false"])
def test_history_can_be_turned_off(read, tmp_path, monkeypatch, value):
    monkeypatch.setenv(HISTORY_VARIABLE, value)
    assert history_path() is None
    assert read("one\r", f"{UP}\r") == ["one", "one"]
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_cannot_be_written_is_kept_for_the_run(read, tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    assert isinstance(open_history(history_path()), InMemoryHistory)
    assert read("one\r", f"{UP}\r") == ["one", "one"]
    assert isinstance(open_history(tmp_path), InMemoryHistory)  # a folder where the file should be


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")  # noqa: PTH110
def test_a_full_disk_does_not_end_the_conversation(read, monkeypatch):
    monkeypatch.setenv(HISTORY_VARIABLE, "/dev/full")
    # Reading it never ends, so only the writing is tried.
    monkeypatch.setattr(FileHistory, "load_history_strings", lambda _self: [])
    assert read("one\r", f"{UP}\r") == ["one", "one"]


def test_without_a_home_folder_there_is_no_history(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_state_path", fail)
    assert history_path() is None


def test_one_shot_does_not_load_prompt_toolkit(yes):
    program = "from tritgguf.runtime.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", f"import sys; {program}", "chat", str(yes), "--prompt", "Hi", "--max-tokens", "1"]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    loaded = child.stderr.split()
    assert "llama_cpp" in loaded
    assert "prompt_toolkit" not in loaded


@pytest.fixture(scope="module")
def yes(speaking_model):
    return speaking_model(list(b"Yes."), n_ctx_train=4096)


@pytest.fixture(scope="module")
def endless(make_model, speaking_tensors, tmp_path_factory):
    """A model that says "ababab…" for ever."""
    tensors = speaking_tensors({ord("\n"): ord("a"), ord("a"): ord("b"), ord("b"): ord("a")})
    return make_model(tmp_path_factory.mktemp("endless") / "endless.gguf", tensors, n_ctx_train=100_000)


@pytest.fixture
def chat(tmp_path):
    terminals = []

    def start(*arguments, **changes):
        env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "TRITGGUF_DEBUG": "", **changes}
        terminals.append(Terminal("chat", *arguments, "--temperature", 0, env=env))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def n_prompt_tokens(message):
    """Tokens of one message in the models' template: every byte is one, and so is each of its three markers."""
    return len(f"user\n{message}\nassistant\n".encode()) + 3


@posix
@pytest.mark.parametrize(
    "keys", [pasted("one\rtwo\rthree"), "one\\\rtwo\\\rthree", f"one{ALT_ENTER}two{ALT_ENTER}three"]
)
def test_three_lines_are_one_message(chat, yes, keys):
    terminal = chat(yes, "--stats")
    terminal.expect(READY)
    terminal.type(keys)
    terminal.expect("three")
    terminal.type("\r")
    terminal.expect("Yes.\r\n")
    assert "Yes." not in terminal.expect(READY)
    terminal.type("/exit\r")
    n_tokens = n_prompt_tokens("one\ntwo\nthree")
    terminal.expect(f"prompt: {n_tokens} tokens in")
    terminal.expect("generation: 4 tokens in")
    assert terminal.wait() == 0


@posix
def test_a_second_run_recalls_the_history(chat, yes, tmp_path):
    for keys, shown in (("first\r", "first"), (f"{UP}{UP}\r", "first")):  # above the message stands /exit
        terminal = chat(yes)
        terminal.expect(READY)
        terminal.type(keys)
        terminal.expect(shown)
        terminal.expect("Yes.\r\n")
        terminal.expect(READY)
        terminal.type("/exit\r")
        assert terminal.wait() == 0
    file = tmp_path / "state" / "tritgguf" / "chat_history"
    assert re.findall(r"^\+(.*)$", file.read_text(), re.M) == ["first", "/exit", "first", "/exit"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@posix
def test_tab_completes_a_command_and_help_tells_the_keys(chat, yes):
    terminal = chat(yes)
    terminal.expect(READY)
    terminal.type("/he")
    terminal.expect("show this help")  # the list of completions
    terminal.type("\t\r")
    terminal.expect("/system TEXT")
    terminal.expect("Alt+Enter")


@pytest.mark.usefixtures("unmeasured")
@posix
def test_ctrl_c_clears_a_message_and_stops_an_answer_and_ctrl_d_leaves(chat, endless):
    terminal = chat(endless, "--ctx", 50000)
    terminal.expect(READY)
    terminal.type("not this")
    terminal.expect("not this")
    terminal.type("\x03")
    terminal.expect("To leave, type /exit or press Ctrl-D.")
    for _ in range(2):
        terminal.expect(READY)
        terminal.type("Hi?\r")
        assert "not this" not in terminal.expect("ababab")
        terminal.type("\x03")
        terminal.expect("(stopped)")
    terminal.expect(READY)
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert terminal.reads_lines()


@pytest.mark.usefixtures("unmeasured")
@posix
def test_a_request_to_end_leaves_the_terminal_as_it_was(chat, yes):
    terminal = chat(yes)
    terminal.expect(READY)
    assert not terminal.reads_lines()
    terminal.signal(signal.SIGTERM)
    assert terminal.wait() == 143
    assert terminal.reads_lines()
    terminal.expect("\x1b[?2004l")


@posix
def test_bytes_that_are_no_utf_8_are_refused_and_the_conversation_continues(chat, yes):
    terminal = chat(yes)
    terminal.expect(READY)
    terminal.type(b"caf\xe9!\r")
    terminal.expect("That message isn't valid UTF-8.")
    terminal.expect(READY)
    terminal.type("Hi\r")
    terminal.expect("Yes.\r\n")


@posix
def test_a_dumb_terminal_gets_no_escape_codes_and_no_history(chat, yes, tmp_path):
    terminal = chat(yes, TERM="dumb")
    terminal.expect("> ")
    terminal.type("Hi\n")
    assert "\x1b" not in terminal.expect("Yes.\r\n")
    terminal.expect("> ")
    terminal.type("/help\n")
    assert "Alt+Enter" not in terminal.expect("Ctrl-C stops an answer.")
    assert not (tmp_path / "state").exists()
