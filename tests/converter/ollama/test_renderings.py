"""The recorded texts are of today's templates, and are what Go's own text/template renders."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from tests.golden.go_template_cases import (
    IN_A_ROW,
    LITERALS,
    ODD_FILLING,
    ROLES_TEMPLATE,
    THINK_TEMPLATE,
    cases,
)
from tests.golden.record_go_templates import recorded
from tests.ollama_prompt import ollama_prompt
from tritgguf.converter.ollama.families import EOS, FAMILIES, Family
from tritgguf.converter.ollama.go_literal import go_literal
from tritgguf.converter.ollama.renderings import renderings
from tritgguf.converter.ollama.samples import SAMPLES


def name_of(family: Family) -> str:
    return family.name


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, to record again")
def test_go_renders_what_was_recorded() -> None:
    for path, text in recorded().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m tests.golden.record_go_templates"


def test_every_case_was_recorded() -> None:
    for template, sample in cases():
        ollama_prompt(template, sample.messages, sample.think)


@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_the_renderings_are_of_today_s_template_and_samples(family: Family) -> None:
    assert len(renderings(family)) == len(SAMPLES) == 21
    with pytest.raises(RuntimeError, match=f"has no texts of family {family.name} as it is now: run"):
        renderings(replace(family, template=family.template + " "))
    with pytest.raises(RuntimeError, match="has no texts of family new"):
        renderings(replace(family, name="new"))


def test_the_renderings_are_of_today_s_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritgguf.converter.ollama.renderings.SAMPLES", (*SAMPLES[:-1], SAMPLES[0]))
    with pytest.raises(RuntimeError, match="has no texts of family chatml"):
        renderings(FAMILIES[0])


@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_texts_put_into_a_rendering_equal_the_rendering_of_texts_put_into_the_template(family: Family) -> None:
    """`Filling.texts` on recorded strings is what Go renders for `Filling.template`, whatever a model's texts hold."""
    template = ODD_FILLING.template(family)
    by_go = [ollama_prompt(template, sample.messages, sample.think) for sample in SAMPLES]
    assert ODD_FILLING.texts(family) == by_go
    assert all(text.count(ODD_FILLING.bos) == 1 for text in by_go)
    defaults = [text.count(ODD_FILLING.default) for text in by_go]
    assert defaults == [0 if sample.has_system else 1 for sample in SAMPLES]


def test_no_sample_holds_the_placeholder_for_the_end_token() -> None:
    assert not any(EOS in text for sample in SAMPLES for message in sample.messages for text in message.values())


@pytest.mark.parametrize("text", LITERALS)
def test_a_literal_renders_as_itself_and_a_modelfile_can_hold_it(text: str) -> None:
    literal = go_literal(text)
    assert ollama_prompt(literal, ()) == text
    assert '"""' not in literal
    assert all(character.isprintable() or character in "\n\t" for character in literal)


# --- the data that Ollama gives a template ---------------------------------------------------------------------------


def test_messages_in_a_row_from_one_role_are_joined() -> None:
    assert ollama_prompt(ROLES_TEMPLATE, IN_A_ROW) == "[system:a\n\nb][user:c\n\nd][assistant:e][system:f]a\n\nb\n\nf"


def test_thinking_is_unset_true_or_false() -> None:
    texts = [ollama_prompt(THINK_TEMPLATE, (), think) for think in (None, True, False)]
    assert texts == ["false false", "true true", "true false"]
