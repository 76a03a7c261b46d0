"""`convert` and `run` take the exact type that is fastest on this machine's CPU; --smallest doesn't ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.runtime.engine import decode_speed

DEMO = ROOT / "vendor" / "demo-model"
SPEEDS = {"tq1_0": 4e-11, "tq2_0": 2e-11, "q2_0": 2.1e-11, "q2_k": 5e-11, "q4_0": 7e-11}


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which the speeds above are kept for this machine; it isn't the self-test's."""
    path = decode_speed._file()
    monkeypatch.setattr(decode_speed, "_file", lambda: tmp_path / "speeds" / path.name)
    kept = decode_speed._file()
    kept.parent.mkdir()
    kept.write_text(json.dumps(SPEEDS))
    return kept


def linear_types(out: str) -> set[str]:
    return {tensor["type"] for tensor in json.loads(out)["tensors"] if "attn_q.weight" in tensor["name"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), "tq2_0"), (("--smallest",), "tq1_0"), (("--for", "vulkan"), "tq1_0"), (("--for", "any"), "q2_k")],
)
def test_convert(options: tuple[str, ...], expected: str, monkeypatch, capsys) -> None:
    code, out, _ = run_captured(monkeypatch, capsys, "convert", DEMO, "--dry-run", "--json", *options)
    assert (code, linear_types(out)) == (0, {expected})
    notes = [note for note in json.loads(out)["notes"] if "rather than" in note]
    assert [note.split("; --smallest")[0] for note in notes] == (
        ["tq2_0 rather than tq1_0: decodes 2.0 times as fast on this machine"] if expected == "tq2_0" else []
    )


def test_a_type_that_is_asked_for_needs_no_speeds(measured: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(decode_speed, "COMMAND", ("nothing-of-this-name",))
    measured.unlink()
    code, out, errors = run_captured(monkeypatch, capsys, "convert", DEMO, "--dry-run", "--json", "--type", "q2_0")
    assert (code, linear_types(out), "note:" in errors) == (0, {"q2_0"}, False)
    code, out, errors = run_captured(monkeypatch, capsys, "convert", DEMO, "--dry-run", "--json")
    assert (code, linear_types(out)) == (0, {"tq1_0"})
    unknown = (
        "note: the types' speed couldn't be measured (FileNotFoundError): of exact types, the smallest one is chosen"
    )
    assert unknown in errors.splitlines()


def test_run_and_pull_keep_both_forms_apart(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRITGGUF_CACHE", str(tmp_path / "cache"))
    for options, expected in (((), "tq2_0"), (("--smallest",), "tq1_0"), ((), "tq2_0")):
        code, out, _ = run_captured(monkeypatch, capsys, "pull", DEMO, "--for", "cpu", *options)
        assert (code, out.split(": ")[1].split(",")[0]) == (0, expected)
    code, out, _ = run_captured(monkeypatch, capsys, "list", "--json")
    forms = {model["type"]: model["asked"]["smallest"] for model in json.loads(out)}
    assert (code, forms) == (0, {"tq2_0": False, "tq1_0": True})
