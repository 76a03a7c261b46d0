"""The form of the catalogue's rows, and what `tritgguf list --known` and `show` print of them."""

from __future__ import annotations

import json
import re

import pytest

from tests.command_line import run_captured
from tritgguf.converter.model.architecture import architectures
from tritgguf.converter.planning.targets import TARGETS
from tritgguf.converter.quant.codec import codecs
from tritgguf.runtime.cli.command import commands
from tritgguf.runtime.hub.catalogue import FILE, KnownModel, catalogue
from tritgguf.runtime.hub.names import parse

ROWS = list(catalogue().values())


def test_names_are_unique_and_easy_to_type() -> None:
    names = [row["name"] for row in json.loads(FILE.read_text("utf-8"))]
    assert len(names) == len(set(names)) == len(ROWS) > 20
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{2,30}", name) for name in names)
    assert len({row.model for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row(row: KnownModel) -> None:
    named = parse(row.model)
    assert named is not None
    assert str(named) == row.model
    assert row.architecture is None or row.architecture in {known.name for known in architectures()}
    assert row.runs_on
    assert set(row.runs_on) <= set(TARGETS)
    assert row.download_bytes is None or 10**8 < row.download_bytes < 10**12
    assert row.licence is None or re.fullmatch(r"[a-z0-9.-]+", row.licence)
    assert re.fullmatch(r"\d+(\.\d+)?[MB](, \d+B active)?", row.parameters)
    assert all((row.by, row.stored, row.becomes))
    assert row.note is None or row.note == row.note.strip(". ")
    types = set(re.findall(r"\w*\d_\w+", row.becomes))
    assert types <= set(codecs()), "the types that it becomes"
    assert bool(types) == (row.options == "")


@pytest.mark.parametrize("row", [row for row in ROWS if row.options], ids=lambda row: row.name)
def test_options_are_those_of_run(row: KnownModel) -> None:
    import typer

    from tritgguf.runtime.cli.main import application

    assert "run" in commands()
    known = typer.main.get_command(application()).commands["run"].params  # type: ignore[attr-defined]
    assert set(re.findall(r"--[a-z-]+", row.options)) <= {option for parameter in known for option in parameter.opts}


def test_the_list_of_known_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, errors = run_captured(monkeypatch, capsys, "list", "--known")
    assert (code, errors) == (0, "")
    assert "tritgguf run bitnet-2b " in said
    code, said, _ = run_captured(monkeypatch, capsys, "list", "--known", "--json")
    rows = {row["name"]: row for row in json.loads(said)}
    assert rows["bitnet-2b"]["model"] == "microsoft/bitnet-b1.58-2B-4T"
    assert rows["trit-3b-d2"]["command"] == "tritgguf run trit-3b-d2 --max-bits 5"
