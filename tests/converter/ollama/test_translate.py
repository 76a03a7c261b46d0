"""A chat template gets the Go template that renders the same, and the right Modelfile."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from tests import paths
from tests.chat_templates import CASES, Case
from tests.golden.go_template_cases import OTHER, THINKING
from tests.ollama_prompt import ollama_prompt
from tritgguf.converter.ollama.families import FAMILIES
from tritgguf.converter.ollama.modelfile import Modelfile
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM, SAMPLES, Message
from tritgguf.converter.ollama.translate import NearMiss, Translation, translate
from tritgguf.runtime.chat.chat_template import ChatTemplate

GOLDENS = paths.GOLDEN / "modelfiles"


def rendered(case: Case, messages: Sequence[Message], think: bool | None = None) -> str:
    named = [{("reasoning_content" if k == "thinking" else k): text for k, text in m.items()} for m in messages]
    return ChatTemplate(case.jinja, bos=case.bos, eos=case.eos).render(named, think=think)


def found(case: Case) -> Translation | NearMiss:
    return translate(
        lambda messages, think: rendered(case, messages, think), bos=case.bos, eos=case.eos, add_bos=case.add_bos
    )


def modelfile(case: Case) -> Modelfile:
    choice = found(case)
    assert isinstance(choice, Translation)
    parameters = {"stop": choice.stops, "num_ctx": 4096, "temperature": 0.7, "top_k": 20}
    return Modelfile("model.gguf", choice.template, parameters, system='Say "hi".', license="apache-2.0")


@pytest.mark.parametrize("name", CASES)
def test_the_family_is_found_and_renders_the_same(name: str) -> None:
    case = CASES[name]
    choice = found(case)
    assert isinstance(choice, Translation), choice
    assert choice.family == case.family
    bos = case.bos if case.add_bos else ""
    for sample in OTHER:
        prompt = ollama_prompt(choice.template, sample.messages, sample.think)
        assert prompt == rendered(case, sample.messages, sample.think).removeprefix(bos)


@pytest.mark.parametrize("name", CASES)
def test_an_empty_system_message_is_rendered_the_same(name: str) -> None:
    """Among these are default system texts, which an empty message replaces, and formats without a system role."""
    case = CASES[name]
    choice = found(case)
    assert isinstance(choice, Translation)
    prompt = ollama_prompt(choice.template, EMPTY_SYSTEM.messages)
    bos = case.bos if case.add_bos else ""
    assert prompt == choice.empty_system == rendered(case, EMPTY_SYSTEM.messages).removeprefix(bos)


def test_every_family_has_a_chat_template_here() -> None:
    assert {case.family for case in CASES.values()} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", CASES)
def test_the_modelfile_is_the_golden(name: str) -> None:
    """The goldens were written by `modelfile(case).text()` and then reviewed by a person."""
    assert modelfile(CASES[name]).text() == (GOLDENS / f"{name}.Modelfile").read_text(encoding="utf-8")


def test_every_golden_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDENS.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "mistral-v3"])
def test_a_template_that_differs_anywhere_is_not_taken_for_the_family(name: str) -> None:
    """One changed character in one sample makes the family a near miss."""
    case = CASES[name]
    exact = [rendered(case, sample.messages, sample.think) for sample in SAMPLES]
    for index in range(1, len(SAMPLES)):
        changed = [*exact[:index], exact[index] + "x", *exact[index + 1 :]]
        texts = iter(changed)
        choice = translate(lambda *_, texts=texts: next(texts), bos=case.bos, eos=case.eos, add_bos=case.add_bos)
        assert isinstance(choice, NearMiss)
        assert choice.n_samples == len(SAMPLES)
        assert choice.n_alike == len(SAMPLES) - 1


def test_the_template_has_bos_if_the_tokenizer_does_not_add_it() -> None:
    choice = found(CASES["chatml-with-bos"])
    assert isinstance(choice, Translation)
    assert choice.template.startswith("<s>{{ range .Messages }}")
    assert CASES["llama3"].add_bos
    without = found(CASES["llama3"])
    assert isinstance(without, Translation)
    assert "<|begin_of_text|>" not in without.template


def test_a_default_system_text_with_braces_is_escaped() -> None:
    jinja = CASES["qwen2.5"].jinja.replace("You are Qwen", 'You are {{ .Qwen }} """')
    case = Case("chatml", jinja, eos="<|im_end|>")
    choice = found(case)
    assert isinstance(choice, Translation)
    assert 'You are {{ "{{" }} .Qwen }} {{ "\\"\\"\\"" }}' in choice.template


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "minicpm5", "qwen3-thinking-2507"])
def test_ollama_finds_the_tags_around_thoughts(name: str) -> None:
    """Ollama takes the texts around .Thinking, in the innermost block of the range over .Messages."""
    choice = found(CASES[name])
    assert isinstance(choice, Translation)
    _, turns = choice.template.split("{{ range $i, $_ := .Messages }}<", 1)
    (tags,) = re.findall(r"{{ if [^}]* }}([^{}]*){{ \.Thinking }}([^{}]*){{ end }}", turns)
    assert [tag.strip() for tag in tags] == ["<think>", "</think>"]
    last, earlier = (ollama_prompt(choice.template, sample.messages) for sample in THINKING)
    assert "<think>\nhm\n</think>\n\nb<|im_end|>" in last
    assert "hm" not in earlier
