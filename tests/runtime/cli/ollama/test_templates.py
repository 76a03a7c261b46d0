"""`tritgguf ollama`: chat templates as Ollama renders them, and --check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from tests import packed_checkpoints
from tests.chat_templates import CASES, FIXED_DATE
from tests.command_line import run_captured
from tests.gguf_edit import rewrite
from tests.runtime.cli.ollama.commands import files_in, one_line, refused
from tritgguf.converter import convert
from tritgguf.runtime.chat.chat_template import ChatTemplate
from tritgguf.runtime.ollama.jinja_there import UNSET

# --- templates -------------------------------------------------------------------------------------------------------

UNKNOWN = "{% for m in messages %}@{{ m.role }}@ {{ m.content }}{{ eos_token }}{% endfor %}@assistant@"


def test_an_unknown_template_goes_in_as_guarded_jinja(exact: Path, monkeypatch, capsys) -> None:
    rewrite(exact, exact.with_name("odd.gguf"), keys={"tokenizer.chat_template": UNKNOWN})
    odd = exact.with_name("odd.gguf")
    _, out, err = run_captured(monkeypatch, capsys, "ollama", odd, "odd")
    assert "a comment that stops Ollama from replacing it" in err
    assert "note: no known Go template renders the same as the file's chat template (nearest is " in err
    text = odd.with_suffix(".Modelfile").read_text()
    assert "TEMPLATE" not in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    jinja = GGUFReader(odd.with_name("odd-ollama.gguf")).fields["tokenizer.chat_template"].contents()
    assert jinja.endswith(UNKNOWN)
    assert len(jinja) - len(UNKNOWN) > 200
    messages = [{"role": "user", "content": "Hi"}]
    assert ChatTemplate(jinja).render(messages) == ChatTemplate(UNKNOWN).render(messages) == "@user@ Hi@assistant@"
    again = odd.with_name("odd-ollama.gguf")
    code, out, _ = run_captured(monkeypatch, capsys, "ollama", again, "odd", "--dry-run")
    assert code == 0
    assert "would write" in out
    assert "odd-ollama-ollama" not in out, "what is guarded already needs no second guard"


@pytest.mark.parametrize(("length", "copied"), [(1941, True), (1942, False), (4600, True), (9000, False)])
def test_a_template_as_long_as_none_that_ollama_knows_needs_no_guard(
    length: int, copied: bool, exact: Path, monkeypatch, capsys
) -> None:
    jinja = UNKNOWN + "{# " + "x" * (length - len(UNKNOWN) - 6) + " #}"
    assert len(jinja) == length
    odd = rewrite(exact, exact.with_name("odd.gguf"), keys={"tokenizer.chat_template": jinja})
    code, out, err = run_captured(monkeypatch, capsys, "ollama", odd, "odd", "--dry-run")
    assert code == 0
    assert ("FROM ./odd-ollama.gguf" if copied else "FROM ./odd.gguf") in out
    assert ("a comment that stops Ollama" in err) == copied


@pytest.mark.parametrize("jinja", ["{% if %}", "{{ messages | no_such_filter }}", "{{ raise_exception('never') }}"])
def test_a_template_that_does_not_render_is_refused(jinja: str, exact: Path, monkeypatch, capsys) -> None:
    bad = rewrite(exact, exact.with_name("bad.gguf"), keys={"tokenizer.chat_template": jinja})
    one_line(run_captured(monkeypatch, capsys, "ollama", bad, "bad"), "the file's chat template")
    assert files_in(exact.parent) == {"exact.gguf", "bad.gguf"}


def test_a_template_that_writes_the_date(exact: Path, monkeypatch, capsys) -> None:
    dated = UNKNOWN + "{{ strftime_now('%d %b %Y') }}"
    bad = rewrite(exact, exact.with_name("dated.gguf"), keys={"tokenizer.chat_template": dated})
    _, _, err = run_captured(monkeypatch, capsys, "ollama", bad, "dated", "--dry-run")
    assert "(it writes the current date)" in err


def _with_jinja(exact: Path, name: str, jinja: str) -> Path:
    return rewrite(exact, exact.with_name(name), keys={"tokenizer.chat_template": jinja})


def test_a_jinja_that_offers_more_is_rendered_instead_of_the_template(exact: Path, monkeypatch, capsys) -> None:
    tools = _with_jinja(exact, "tools.gguf", CASES["chatml"].jinja + "{% if tools %}{{ tools }}{% endif %}")
    code, out, _ = run_captured(monkeypatch, capsys, "ollama", tools, "--check")
    assert code == 0
    assert "Go template equal to the file's chat template: chatml\n" in out
    told = (
        "Ollama 0.30 and newer render the file's own chat template instead of the TEMPLATE, because it offers tools; "
    )
    assert f"note: {told}OLLAMA_GO_TEMPLATE=1, set where Ollama runs, makes it take the TEMPLATE\n" in out
    code, out, err = run_captured(monkeypatch, capsys, "ollama", tools, "tools", "--dry-run")
    assert f"note: {told}" in err
    assert "tools-ollama.gguf" not in out, "it renders the same, so there is nothing to repack"
    assert 'TEMPLATE """' in out, "for 0.29 and older"


def test_a_jinja_that_would_get_today_s_date_is_replaced(exact: Path, monkeypatch, capsys) -> None:
    file = _with_jinja(exact, "dated.gguf", FIXED_DATE)
    _, out, err = run_captured(monkeypatch, capsys, "ollama", file, "dated")
    assert "would write today's date where the chat template has a fixed one" in err
    assert "(Ollama would put today's date into its chat template)" in out
    repacked = file.with_name("dated-ollama.gguf")
    own = GGUFReader(repacked).fields["tokenizer.chat_template"].contents()
    assert own == UNSET + FIXED_DATE
    assert "TEMPLATE" in file.with_suffix(".Modelfile").read_text()
    _, out, err = run_captured(monkeypatch, capsys, "ollama", repacked, "dated", "--dry-run")
    assert "today's date" not in out + err, "it is replaced already"


def test_an_empty_system_message_that_renders_otherwise_is_noted(exact: Path, monkeypatch, capsys) -> None:
    skips = CASES["chatml"].jinja.replace("in messages %}", "in messages if message.content %}")
    file = _with_jinja(exact, "skips.gguf", skips)
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", file, "--check")
    assert "note: the TEMPLATE treats an empty system message differently from the chat template" in out


def test_a_repeat_penalty_that_no_one_asked_for_is_switched_off(exact: Path, monkeypatch, capsys) -> None:
    """Ollama's own default was 1.1 until 0.32.10."""
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", exact, "x", "--dry-run")
    assert "\nPARAMETER repeat_penalty 1\n" in out
    given = rewrite(exact, exact.with_name("given.gguf"), keys={"general.sampling.penalty_repeat": 1.25})
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", given, "x", "--dry-run")
    assert "\nPARAMETER repeat_penalty 1.25\n" in out


def test_a_base_model(exact: Path, monkeypatch, capsys) -> None:
    base = rewrite(exact, exact.with_name("base.gguf"), keys={"tokenizer.chat_template": None})
    code, out, err = run_captured(monkeypatch, capsys, "ollama", base, "base", "--dry-run")
    assert code == 0
    assert "it is a base model" in err
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in out


def test_bos_that_the_template_does_not_write_is_noted(exact: Path, monkeypatch, capsys) -> None:
    keys = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    other = rewrite(exact, exact.with_name("bos.gguf"), keys=keys)
    _, _, err = run_captured(monkeypatch, capsys, "ollama", other, "x", "--dry-run")
    assert "before every prompt, although the chat template doesn't write it" in err


def test_an_eos_that_is_not_the_end_of_a_turn_is_noted(exact: Path, monkeypatch, capsys) -> None:
    other = rewrite(exact, exact.with_name("eos.gguf"), keys={"tokenizer.ggml.eos_token_id": 0})
    _, out, err = run_captured(monkeypatch, capsys, "ollama", other, "x", "--dry-run")
    assert "answers end with <|im_end|>, but the file's eos token is '<|endoftext|>'" in err
    assert 'PARAMETER stop "<|im_end|>"\n' in out


# --- --check ---------------------------------------------------------------------------------------------------------


def test_check(file: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "ollama", "--check", file)
    assert code == 1
    assert "Ollama 0.7.1 to 0.29: loads it\n" in out
    assert "Ollama 0.31.2 and newer: doesn't load it: refuses TQ2_0 tensors such as blk." in out
    assert "Go template equal to the file's chat template: chatml\n" in out
    assert err.startswith("error: tiny.gguf doesn't load in Ollama 0.31.2 and newer: it refuses TQ2_0 tensors")
    assert "`tritgguf ollama tiny.gguf NAME` repacks it if possible" in err
    assert files_in(file.parent) == {"tiny.gguf"}


def test_check_suggests_no_repacking_that_cannot_help(tmp_path: Path, monkeypatch, capsys) -> None:
    model = packed_checkpoints.build("2b4t", tmp_path / "model")
    own = convert(model, tmp_path / "own.gguf", "tq2_0", check=False).out
    one_line(
        run_captured(monkeypatch, capsys, "ollama", "--check", own),
        "it refuses architecture bitnet-b1.58; refuses TQ2_0 tensors such as blk.",
        "; no repacking changes that",
    )
    one_line(run_captured(monkeypatch, capsys, "ollama", own, "x"), "own.gguf can't become an Ollama model")
    assert files_in(tmp_path) == {"model", "own.gguf"}


@pytest.mark.parametrize("name", ["exact.gguf", "tiny.gguf"])
def test_scales_in_tensors_of_their_own(name: str, exact: Path, file: Path, monkeypatch, capsys) -> None:
    """Ollama before 0.30 would answer without them, or fail; so it gets neither such a file nor its repacked copy."""
    scale = {"blk.0.attn_q.scale": (np.array([0.3], np.float32).view(np.uint8), GGMLQuantizationType.F32)}
    scaled = rewrite(file.with_name(name), file.with_name("scaled.gguf"), tensors=scale)
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", scaled, "--check")
    reason = "refuses or ignores the scales in tensors such as blk.0.attn_q.scale"
    assert f"Ollama 0.7.1 to 0.29: doesn't load it: {reason}\n" in out
    result, server = refused(scaled, monkeypatch, capsys, version="0.24.0")
    one_line(result, "Ollama 0.24.0 won't load scaled", reason, "update Ollama")
    assert server.calls == ["GET /api/version"]


def test_check_of_a_good_file(exact: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "ollama", exact, "--check")
    assert (code, err) == (0, "")
    assert out.count(": loads it\n") == 4
    code, out, _ = run_captured(monkeypatch, capsys, "ollama", exact, "--check", "--json")
    found = json.loads(out)
    assert [row["loads"] for row in found["versions"]] == [True] * 4
    assert (found["template"], found["notes"]) == ("chatml", [])
