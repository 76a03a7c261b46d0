"""Go templates render as Go's own text/template renders them (recorded by tests/golden/record_go_templates.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import paths
from tests.golden.go_template_cases import DATA, FEATURES, ODD_TEXT, with_bos
from tritgguf.converter.ollama.families import FAMILIES
from tritgguf.converter.ollama.go_functions import Record
from tritgguf.converter.ollama.go_lexer import GoTemplateError
from tritgguf.converter.ollama.go_template import GoTemplate
from tritgguf.converter.ollama.prompt import go_literal, ollama_prompt

GOLDEN = json.loads((paths.GOLDEN / "go_templates.json").read_text(encoding="utf-8"))


def given(data: dict[str, Any]) -> dict[str, Any]:
    """The data with structs for messages."""
    return data | ({"Messages": [Record(message) for message in data["Messages"]]} if "Messages" in data else {})


def test_the_golden_is_of_these_templates() -> None:
    assert {name: case["template"] for name, case in GOLDEN["families"].items()} == {
        family.name: with_bos(family) for family in FAMILIES
    }, "run python -m tests.golden.record_go_templates again"
    features = [[case["template"], case["data"]] for case in GOLDEN["features"]]
    assert features == json.loads(json.dumps(FEATURES))


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_every_family_renders_as_in_go(name: str) -> None:
    case = GOLDEN["families"][name]
    template = GoTemplate(case["template"])
    assert len(case["texts"]) == len(DATA) > 20
    for data, text in zip(DATA, case["texts"], strict=True):
        assert template.render(given(data)) == text


@pytest.mark.parametrize("case", GOLDEN["features"], ids=lambda case: case["template"][:40])
def test_every_feature_renders_as_in_go(case: dict[str, Any]) -> None:
    if case["text"] is None:
        with pytest.raises(GoTemplateError) as caught:
            GoTemplate(case["template"]).render(given(case["data"]))
        assert "\n" not in str(caught.value)
    else:
        assert GoTemplate(case["template"]).render(given(case["data"])) == case["text"]


# --- what Ollama does around a template -----------------------------------------------------------------------------


def test_messages_in_a_row_from_one_role_are_one() -> None:
    template = GoTemplate("{{ range .Messages }}[{{ .Role }}:{{ .Content }}]{{ end }}{{ .System }}")
    messages = [("system", "a"), ("system", "b"), ("user", "c"), ("user", "d"), ("assistant", "e"), ("system", "f")]
    text = ollama_prompt(template, [{"role": role, "content": content} for role, content in messages])
    assert text == "[system:a\n\nb][user:c\n\nd][assistant:e][system:f]a\n\nb\n\nf"


def test_thinking_is_unset_true_or_false() -> None:
    template = GoTemplate("{{ .IsThinkSet }} {{ .Think }}")
    texts = [ollama_prompt(template, [], think=think) for think in (None, True, False)]
    assert texts == ["false false", "true true", "true false"]


@pytest.mark.parametrize("text", [ODD_TEXT, "{{", "a {{{{ b", '"""', '""""""', "plain\n\ttext", "\u2028\ufeff\r", ""])
def test_a_literal_renders_as_itself_and_a_modelfile_can_hold_it(text: str) -> None:
    literal = go_literal(text)
    assert GoTemplate(literal).render({}) == text
    assert '"""' not in literal
    assert all(letter.isprintable() or letter in "\n\t" for letter in literal)
