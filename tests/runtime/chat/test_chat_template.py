"""Chat templates render as transformers renders them (recorded by record_chat_templates.py)."""

from __future__ import annotations

import json

import pytest

from tests import paths
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.chat_template import ChatTemplate

GOLDEN = json.loads((paths.GOLDEN / "chat_templates.json").read_text(encoding="utf-8"))
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
EACH = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['template']}-{case['conversation']}-{case['prompt']}"
)
def test_renders_what_transformers_renders(case):
    tokens = GOLDEN["tokens"]
    template = ChatTemplate(GOLDEN["templates"][case["template"]], bos=tokens["bos_token"], eos=tokens["eos_token"])
    messages = GOLDEN["conversations"][case["conversation"]]
    if case["text"] is None:
        with pytest.raises(EngineError) as caught:
            template.render(messages, add_generation_prompt=case["prompt"], fold_system=False)
        assert "\n" not in str(caught.value)
    else:
        text = template.render(messages, add_generation_prompt=case["prompt"], fold_system=False)
        assert text == case["text"]


@pytest.mark.parametrize(
    "source",
    [
        NO_SYSTEM + EACH,
        "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}",
    ],
    ids=["refused", "left out"],
)
def test_a_system_message_the_template_has_no_place_for_goes_before_the_first_user_message(source):
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    template = ChatTemplate(source)
    assert template.render([system, user]) == "[user]Be brief.\nHi"
    answer, more = {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "Bye"}
    assert template.render([system, user, answer, more]) == "[user]Be brief.\nHi[assistant]Yo[user]Bye"


def test_a_system_message_alone_is_refused_with_the_templates_words():
    with pytest.raises(EngineError, match="System role not supported"):
        ChatTemplate(NO_SYSTEM + EACH).render([{"role": "system", "content": "Be brief."}])


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(EngineError):
        ChatTemplate("{{ messages.append(1) }}").render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% for m in messages %}", "{% break %}{% nonsense %}"])
def test_a_broken_template_is_one_line(source):
    with pytest.raises(EngineError, match="isn't valid Jinja") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{{ messages[0].content + 1 }}", "{% for i in range(10**9) %}{% endfor %}"]
)
def test_a_template_that_fails_while_rendering_is_one_line(source):
    with pytest.raises(EngineError, match="chat template refuses") as caught:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}", True),
        (
            "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}",
            True,
        ),
        ("{% set thinking = enable_thinking | default(true) %}{{ thinking }}", True),
        ("{% macro end() %}{% if enable_thinking %}<think>{% endif %}{% endmacro %}{{ end() }}", True),
        ("{# enable_thinking is for others #}{{ messages[0].content }}", False),
        ("{% set enable_thinking = true %}{{ enable_thinking }}", False),
    ],
)
def test_whether_a_template_reads_enable_thinking(source, known):
    template = ChatTemplate(source)
    assert template.knows_thinking == known
    hi = [{"role": "user", "content": "Hi"}]
    assert (template.render(hi, think=True) != template.render(hi, think=False)) == known
