"""The chat command as a real process: one shot, pipes, a pseudo-terminal, bad input.

What its options do is tested in this process, which starts twenty times as fast.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
from importlib import metadata

import pytest

from tests.command_line import run_captured
from tests.terminal import PROGRAM, Terminal
from tritgguf.runtime.engine import backend

posix = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")


@pytest.fixture(scope="module")
def yes(speaking_model):
    """A model that answers "Yes. 🙂"."""
    return speaking_model(list("Yes. 🙂".encode()))


@pytest.fixture(scope="module")
def endless(make_model, speaking_tensors, tmp_path_factory):
    """A model that says "ababab…" for ever; its second choice after b is c."""
    tensors = speaking_tensors({ord("\n"): ord("a"), ord("a"): ord("b"), ord("b"): ord("a")})
    tensors["output.weight"][ord("c"), ord("b")] = 0.5
    return make_model(tmp_path_factory.mktemp("endless") / "endless.gguf", tensors, n_ctx_train=100_000)


def environment(**changes):
    return {**os.environ, "TRITGGUF_DEBUG": "", "COLUMNS": "200", "TERM": "dumb", **changes}


def run(*arguments, stdin="", **changes):
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=60,
        env=environment(**changes),
    )


@pytest.fixture
def chat(monkeypatch, capsys):
    """Run `tritgguf chat` in this process; return its exit code, standard output and standard error."""
    for name, value in {"TRITGGUF_DEBUG": "", "COLUMNS": "200", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)

    def run_here(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        return run_captured(monkeypatch, capsys, "chat", *arguments)

    return run_here


def output(child):
    return child.returncode, child.stdout.decode(), child.stderr.decode()


@pytest.mark.parametrize(("options", "stdin"), [(["--prompt", "Hi?"], ""), ([], "Hi?\n"), (["--prompt", "-"], "Hi?")])
def test_one_shot_prints_the_answer_alone(yes, options, stdin):
    assert output(run("chat", yes, "--temperature", 0, *options, stdin=stdin)) == (0, "Yes. 🙂\n", "")


@pytest.mark.skipif(os.name != "posix", reason="subprocess takes a pipe's file descriptor there")
def test_prompt_leaves_standard_input_to_others(yes):
    reader, writer = os.pipe()
    os.write(writer, b"for the next command")
    os.close(writer)
    command = [*PROGRAM, "chat", str(yes), "--temperature", "0", "--prompt", "Hi?"]
    child = subprocess.run(command, stdin=reader, capture_output=True, timeout=60, env=environment())
    assert output(child) == (0, "Yes. 🙂\n", "")
    assert os.read(reader, 100) == b"for the next command"
    os.close(reader)


def test_a_dash_is_the_piped_text(speaking_model, chat):
    # Raw completion of a model without a template: each byte is a token.
    base = speaking_model(list(b"x"), template=None)
    options = ("--prompt", "t", "--prompt", "-", "--stats", "--max-tokens", 1)
    _, _, stats = chat(base, *options, stdin=b"seven!\n")
    assert stats.startswith("> t\n")
    assert int(re.search(r"prompt: (\d+) tokens", stats)[1]) == len("t") + len("seven!")


def test_what_has_no_effect_is_said(speaking_model, yes, chat):
    base = speaking_model(list(b"x"), template=None)
    options = ("--prompt", "a", "--max-tokens", 1)
    _, _, notes = chat(base, *options, "--system", "Be brief.", "--no-think")
    assert notes.splitlines()[:2] == [
        "note: the system message has no effect: this is a base model (it has no chat template)",
        "note: --think and --no-think have no effect on this file: it has no chat template",
    ]
    _, _, notes = chat(yes, *options, "--system", "Be brief.", "--think")
    reason = "its chat template doesn't read enable_thinking"
    assert notes.splitlines()[0] == f"note: --think and --no-think have no effect on this file: {reason}"


def test_no_think_reaches_the_template(speaking_model, chat):
    template = "{{ messages[0].content }}{% if enable_thinking is false %}12345{% endif %}{{ '\\n' }}"
    model = speaking_model(list(b"Yes."), template=template)
    for option, n_tokens in (("--no-think", 8), ("--think", 3)):
        code, text, stats = chat(model, "--prompt", "Hi", "--temperature", 0, "--stats", option)
        assert (code, text) == (0, "Yes.\n")
        assert stats.startswith(f"prompt: {n_tokens} tokens")


def test_the_files_sampling_applies_unless_an_option_says_otherwise(make_model, speaking_tensors, tmp_path, chat):
    tensors = speaking_tensors({ord("\n"): ord("a"), ord("a"): ord("b"), ord("b"): ord("a")})
    tensors["output.weight"][ord("c"), ord("b")] = 0.5
    model = make_model(tmp_path / "recommends.gguf", tensors, general__sampling__penalty_repeat=100.0)

    def text(*options):
        return chat(model, "--prompt", "Hi", "--max-tokens", 30, "--temperature", 0, *options)[1]

    assert text().startswith("abc")
    assert text("--repeat-penalty", 1) == "ab" * 15 + "\n"


def test_a_file_that_recommends_nonsense_is_told_in_one_line(speaking_model, chat):
    model = speaking_model(list(b"Yes."), general__sampling__temp=-1.0)
    code, text, error = chat(model, "--prompt", "Hi")
    assert (code, text) == (1, "")
    expected = "general.sampling.temp: temperature is -1.0, expected 0.0 to 100.0; choose the value with --temperature"
    assert error == f"error: {model}: {expected}\n"
    assert chat(model, "--prompt", "Hi", "--temperature", 0) == (0, "Yes.\n", "")


def test_settings_reach_the_model(endless, chat):
    def text(*options):
        return chat(endless, "--prompt", "Hi", "--max-tokens", 30, *options)[1]

    assert text("--temperature", 0) == "ab" * 15 + "\n"
    hot = ("--temperature", 20, "--top-k", 0, "--top-p", 1, "--min-p", 0)
    assert text(*hot, "--seed", 1) == text(*hot, "--seed", 1) != text(*hot, "--seed", 2)
    assert text(*hot, "--top-k", 1) == text(*hot, "--min-p", 1) == text(*hot, "--top-p", 0) == "ab" * 15 + "\n"
    assert text("--temperature", 0, "--repeat-penalty", 100).startswith("abc")


def test_max_tokens_and_the_context_cut_an_answer_and_say_so(endless, chat):
    code, text, note = chat(endless, "--prompt", "Hi", "--temperature", 0, "--max-tokens", 3)
    assert (code, text, note) == (0, "aba\n", "(cut off: --max-tokens reached)\n")
    code, text, note = chat(endless, "--prompt", "Hi", "--temperature", 0, "--ctx", 64)
    assert (code, note) == (0, "(cut off: the context of 64 tokens is full)\n")
    assert re.fullmatch(r"(ab)+a?\n", text)


def test_a_system_message_is_part_of_the_prompt(yes, chat):
    def n_prompt(*options):
        _, _, stats = chat(yes, "--prompt", "Hi", "--temperature", 0, "--stats", *options)
        return int(re.search(r"^prompt: (\d+) tokens", stats)[1])

    # Every byte is a token, and so is each of the two markers around the message.
    assert n_prompt("--system", "Be brief.") == n_prompt() + len("system\nBe brief.\n") + 2


def test_stats_go_to_standard_error(yes, chat):
    code, text, stats = chat(yes, "--prompt", "Hi", "--temperature", 0, "--stats")
    assert (code, text) == (0, "Yes. 🙂\n")
    pattern = (
        r"prompt: \d+ tokens in \d+\.\d\d s, \d+\.\d tokens/s\ngeneration: 9 tokens in \d+\.\d\d s, \d+\.\d tokens/s\n"
        r"CPU kernels: .+\n"
    )
    if backend.supports_gpu():
        pattern += r"layers: all \d+ on .+\n"
    assert re.fullmatch(pattern, stats)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["missing.gguf"], b"Hi", "missing.gguf: no such file"),
        (["."], b"Hi", ".: is a folder"),
        (["{yes}", "--temperature", "-1"], b"Hi", "temperature is -1.0, expected 0.0 to 100.0"),
        (["{yes}", "--top-p", "2"], b"Hi", "top_p is 2.0"),
        (["{yes}", "--seed", "-5"], b"Hi", "seed is -5"),
        (["{yes}", "--ctx", "1000000"], b"Hi", "a context of 1000000 tokens was requested, the model allows 2 to 512"),
        (["{yes}", "--threads", "0"], b"Hi", "threads is 0, expected 1 to 512"),
        (["{yes}"], b"", "nothing to answer"),
        (["{yes}", "--prompt", ""], b"Hi", "nothing to answer"),
        (["{yes}", "--prompt", "-", "--prompt", "-"], b"Hi", "give it once"),
        (["{yes}", "--prompt", "x" * 600], b"", "too many for a context of 512"),
        (["{yes}"], b"\xff\xfe", "standard input isn't UTF-8"),
    ],
)
def test_an_error_is_one_line(yes, arguments, stdin, message, chat):
    code, text, error = chat(*(argument.format(yes=yes) for argument in arguments), stdin=stdin)
    assert (code, text) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", error)
    assert message in error


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["--top-k", "many"], ["--max-tokens", "0"], ["--gpu-layers", "-1"]]
)
def test_wrong_usage_exits_with_2(yes, arguments, chat):
    code, text, error = chat(yes, *arguments)
    assert (code, text) == (2, "")
    assert arguments[0] in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "how", [{"arguments": ["--debug"]}, {"changes": {"TRITGGUF_DEBUG": "1"}}], ids=["option", "variable"]
)
def test_debug_shows_the_traceback(how):
    child = run(*how.get("arguments", []), "chat", "missing.gguf", stdin="Hi", **how.get("changes", {}))
    assert child.returncode == 1
    assert "Traceback" in child.stderr.decode()
    assert "EngineError: missing.gguf: no such file" in child.stderr.decode()


def test_version_and_help():
    code, text, error = output(run("--version"))
    assert (code, error) == (0, "")
    assert text.startswith(
        f"tritgguf {metadata.version('tritgguf')}, llama-cpp-python {metadata.version('llama-cpp-python')}"
    )
    shown = run("chat", "--help").stdout.decode()
    options = [
        "--prompt",
        "--system",
        "--temperature",
        "--top-p",
        "--top-k",
        "--min-p",
        "--repeat-penalty",
        "--seed",
        "--ctx",
    ]
    for option in [*options, "--threads", "--gpu-layers", "--stats", "--max-tokens"]:
        assert option in shown


@posix
def test_a_reader_that_goes_away_is_no_traceback(endless):
    child = subprocess.Popen(
        [*PROGRAM, "chat", str(endless), "--prompt", "Hi", "--temperature", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout.read(4) == b"abab"
    child.stdout.close()
    assert child.wait(60) == 1
    assert child.stderr.read() == b""
    child.stderr.close()


@pytest.mark.usefixtures("unmeasured")
@posix
def test_ctrl_c_ends_a_one_shot_with_130(endless):
    command = [*PROGRAM, "chat", str(endless), "--prompt", "Hi", "--temperature", "0", "--ctx", "50000"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as child:
        assert child.stdout.read(4) == b"abab"  # streamed, not held until the end
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr.read() == b""


def dumb_terminal(*arguments):
    return Terminal("chat", *arguments, env=environment())


@posix
def test_a_conversation_on_a_terminal(yes):
    with dumb_terminal(yes, "--temperature", 0, "--stats") as terminal:
        assert "/help" in terminal.expect("> ")
        terminal.type("Hi?\n")
        terminal.expect("Yes. 🙂\r\n")
        terminal.expect("> ")
        for command, reply in {
            "/help": "/system TEXT",
            "/?": "/system TEXT",
            "/system": "(no system message)",
            "/system Be brief.": "(system message set",
            "/reset": "(conversation cleared)",
            "/no_think Hi?": "Yes. 🙂",
        }.items():
            terminal.type(f"{command}\n")
            terminal.expect(reply)
            terminal.expect("> ")
        terminal.type("/system\n")
        terminal.expect("\r\nBe brief.\r\n")
        terminal.expect("> ")
        terminal.type("\n")  # an empty line asks nothing
        terminal.expect("> ")
        terminal.type("Again?\n")
        terminal.expect("Yes. 🙂\r\n")
        terminal.expect("> ")
        terminal.type("/exit\n")
        terminal.expect("generation: 27 tokens")
        assert terminal.child.wait(60) == 0


@posix
def test_a_prompt_given_on_a_terminal_is_one_shot(yes):
    with dumb_terminal(yes, "--temperature", 0, "--prompt", "Hi?") as terminal:
        assert terminal.expect("Yes. 🙂\r\n") == "Yes. 🙂\r\n"
        assert terminal.child.wait(60) == 0


@posix
@pytest.mark.parametrize("keys", ["\x04", "/bye\n", "/quit\n"])
def test_ways_to_leave(yes, keys):
    with dumb_terminal(yes) as terminal:
        terminal.expect("> ")
        terminal.type(keys)
        assert terminal.child.wait(60) == 0


@pytest.mark.usefixtures("unmeasured")
@posix
def test_ctrl_c_stops_the_answer_and_not_the_program(endless):
    with dumb_terminal(endless, "--temperature", 0, "--ctx", 50000) as terminal:
        terminal.expect("> ")
        terminal.type("\x03")
        terminal.expect("To leave, type /exit or press Ctrl-D.")
        terminal.expect("> ")
        for _ in range(2):
            terminal.type("Hi?\n")
            terminal.expect("ababab")
            terminal.type("\x03")
            terminal.expect("(stopped)")
            terminal.expect("> ")
        terminal.type("/exit\n")
        assert terminal.child.wait(60) == 0


@posix
def test_dropped_turns_and_errors_are_told_and_the_conversation_goes_on(yes):
    with dumb_terminal(yes, "--temperature", 0, "--ctx", 128) as terminal:
        terminal.expect("> ")
        for text, reply in (
            ("A question of some length, number one?", "Yes. 🙂"),
            ("A question of some length, number two?", "(the context is full: dropped the oldest turn)"),
            ("x" * 200, "error: the message has"),
            ("And this?", "Yes. 🙂"),
        ):
            terminal.type(f"{text}\n")
            terminal.expect(reply)
            terminal.expect("> ")


@posix
def test_a_base_model_says_that_it_completes_text(speaking_model):
    with dumb_terminal(speaking_model(list(b"abc"), template=None), "--temperature", 0) as terminal:
        assert terminal.expect("> ").count("base model") == 1
        terminal.type("/system Be brief.\n")
        terminal.expect("no effect")
        terminal.expect("> ")
        terminal.type("a\n")
        terminal.expect("\r\nbc\r\n")
        terminal.expect("> ")
