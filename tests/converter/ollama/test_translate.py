"""Which Go template is found for a chat template, that both render the same, and the Modelfile that comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests import paths
from tests.chat_templates import CASES, Case
from tritgguf.converter.ollama.families import FAMILIES
from tritgguf.converter.ollama.go_lexer import Text
from tritgguf.converter.ollama.go_parser import Branch, Dot, Field, Node, Pipeline, parse
from tritgguf.converter.ollama.go_template import GoTemplate
from tritgguf.converter.ollama.modelfile import Modelfile
from tritgguf.converter.ollama.prompt import Message, ollama_prompt
from tritgguf.converter.ollama.translate import SAMPLES, NearMiss, Translation, translate
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
    other = [
        # What the choice wasn't made on.
        ({"role": "system", "content": "Ö"}, {"role": "user", "content": "Only this."}),
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}),
    ]
    template = GoTemplate(choice.template)
    for messages in other:
        for think in (None, True, False):
            bos = case.bos if case.add_bos else ""
            assert ollama_prompt(template, messages, think=think) == rendered(case, messages, think).removeprefix(bos)


def test_every_family_has_a_chat_template_here() -> None:
    assert {case.family for case in CASES.values()} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", CASES)
def test_the_modelfile_is_the_golden(name: str) -> None:
    """Written by `modelfile(case).text()`, read through by a person, and kept."""
    assert modelfile(CASES[name]).text() == (GOLDENS / f"{name}.Modelfile").read_text(encoding="utf-8")


def test_every_golden_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDENS.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "mistral-v3"])
def test_a_template_that_differs_anywhere_is_not_taken_for_the_family(name: str) -> None:
    """Each sample kind matters: a change in one role, in one place, is seen."""
    case = CASES[name]
    exact = [rendered(case, sample.messages, sample.think) for sample in SAMPLES]
    for index in range(1, len(SAMPLES)):
        changed = [*exact[:index], exact[index] + "x", *exact[index + 1 :]]
        texts = iter(changed)
        choice = translate(lambda *_, texts=texts: next(texts), bos=case.bos, eos=case.eos, add_bos=case.add_bos)
        assert isinstance(choice, NearMiss)
        assert choice.n_samples == len(SAMPLES)
        assert choice.n_alike == len(SAMPLES) - 1


def test_a_bos_that_the_tokenizer_does_not_add_stands_in_the_template() -> None:
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


def thinking_tags(template: str) -> tuple[str, str]:
    """What Ollama takes for the tags around thoughts.

    Where a range over .Messages writes .Thinking: the first and the last text beside it, without their spaces.
    """
    tags = ("", "")

    def visit(nodes: list[Node], in_messages: bool) -> None:
        nonlocal tags
        for node in nodes:
            if in_messages and isinstance(node, Pipeline) and node.commands == (Field(Dot(), "Thinking"),):
                first, last = nodes[0], nodes[-1]
                assert isinstance(first, Text)
                assert isinstance(last, Text)
                tags = first.text.strip(), last.text.strip()
            if isinstance(node, Branch):
                over = node.keyword == "range" and node.pipeline.commands == (Field(Dot(), "Messages"),)
                visit(node.body, in_messages or over)

    visit(parse(template), False)
    return tags


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "minicpm5", "qwen3-thinking-2507"])
def test_ollama_finds_the_tags_around_thoughts(name: str) -> None:
    choice = found(CASES[name])
    assert isinstance(choice, Translation)
    assert thinking_tags(choice.template) == ("<think>", "</think>")
    template = GoTemplate(choice.template)
    thoughts = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "hm"})
    assert "<think>\nhm\n</think>\n\nb<|im_end|>" in ollama_prompt(template, thoughts)
    assert "hm" not in ollama_prompt(template, (*thoughts, {"role": "user", "content": "c"}))
