"""Answers held to a JSON schema or a grammar, by the Python API and by `chat`."""

from __future__ import annotations

import json

import jsonschema
import pytest

import tritgguf.runtime
from tests.command_line import run_captured
from tritgguf.converter.errors import EngineError

SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
QUESTION = [{"role": "user", "content": "what?"}]


def test_the_python_api(random_model):
    with tritgguf.runtime.open(random_model, n_threads=1, seed=3) as session:
        generation = session.chat(QUESTION, json_schema=SCHEMA, temperature=1)
        jsonschema.validate(json.loads("".join(generation)), SCHEMA)
        assert generation.finish == "end"
        assert "".join(session.chat(QUESTION, grammar='root ::= "yes" | "no"')) in ("yes", "no")
        for settings, part in (
            ({"grammar": "root ::= ("}, "grammar isn't valid"),
            ({"grammar": "other ::= []"}, "grammar isn't valid"),
            ({"json_schema": {"type": "x"}}, '"x"'),
            ({"json_schema": {}, "grammar": ""}, "give one of them"),
        ):
            with pytest.raises(EngineError, match=r"grammar|schema") as caught:
                session.chat(QUESTION, **settings)
            assert part in str(caught.value)


def test_chat(random_model, tmp_path, monkeypatch, capsys):
    schema, grammar, broken = (tmp_path / name for name in ("schema.json", "yes.gbnf", "broken.json"))
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text('root ::= "yes" | "no"')
    broken.write_text("{")
    asked = ("chat", random_model, "--prompt", "what?", "--threads", 1)
    code, out, _ = run_captured(monkeypatch, capsys, *asked, "--json-schema", schema)
    assert code == 0
    jsonschema.validate(json.loads(out), SCHEMA)
    assert run_captured(monkeypatch, capsys, *asked, "--grammar", grammar)[1].strip() in ("yes", "no")
    for options, part in (
        (("--json-schema", broken), "broken.json: no JSON schema"),
        (("--grammar", tmp_path / "none"), "none: can't be read"),
        (("--grammar", grammar, "--json-schema", schema), "exclude each other"),
    ):
        code, _, errors = run_captured(monkeypatch, capsys, *asked, *options)
        assert (code, errors.count("\n")) == (1, 1)
        assert part in errors
