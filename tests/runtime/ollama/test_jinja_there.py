"""What Ollama makes of a file's own jinja: llama.cpp defines the date, and thinking is always on or off."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from tests.chat_templates import CASES
from tests.golden.record_llama_cpp_jinja import BOS, CONVERSATIONS, DATES, EOS, GOLDEN, TEMPLATES
from tritgguf.runtime.chat.chat_template import ChatTemplate
from tritgguf.runtime.ollama.jinja_there import UNSET, as_meant, render

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))
FIXED = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
TODAY = "{% set date_string = strftime_now('%d %b %Y') %}{{ date_string }}"
ASKED = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("name", TEMPLATES)
def test_llama_cpp_renders_the_same(name: str) -> None:
    """Recorded from llama.cpp's own jinja. Some of these templates have no system role, some system texts are empty."""
    renderer = ChatTemplate(TEMPLATES[name], bos=BOS, eos=EOS, variables=DATES)
    texts = [render(renderer, sample.messages, sample.think is not False) for sample in CONVERSATIONS]
    assert texts == RECORDED[name]


def test_llama_cpp_leaves_a_fixed_date_alone_where_the_variables_are_unset() -> None:
    kept, lost = (RECORDED[f"llama3.1 with a fixed date{more}"] for more in (" that is kept", ""))
    assert all("Today Date: 26 Jul 2024\n" in text for text in kept)
    assert all("Today Date: 02 Jan 2030\n" in text for text in lost)
    assert kept == RECORDED["llama3.1"]


@pytest.mark.parametrize("form", ["%d %b %Y", "%b %d %Y"])
def test_a_fixed_date_stays(form: str) -> None:
    name = "date_string" if form.startswith("%d") else "datetime"
    jinja = FIXED.replace("date_string", name) + "{{ messages[0].content }}"
    meant = as_meant(jinja, bos="", eos="")
    assert meant == UNSET + jinja
    there = {name: datetime.now().strftime(form)}
    assert ChatTemplate(jinja, variables=there).render(ASKED) == f"{there[name]}Hi"
    assert ChatTemplate(meant, variables=there).render(ASKED) == ChatTemplate(jinja).render(ASKED) == "26 Jul 2024Hi"
    assert as_meant(meant, bos="", eos="") == meant


@pytest.mark.parametrize("name", [*CASES, "today"])
def test_other_templates_are_left_as_they_are(name: str) -> None:
    jinja = TODAY if name == "today" else CASES[name].jinja
    assert as_meant(jinja, bos="<s>", eos="</s>") == jinja


def test_what_no_line_before_it_can_mend() -> None:
    assert as_meant("{% if enable_thinking is defined %}x{% endif %}", bos="", eos="") is None
    thinks = "<think></think>{% if enable_thinking is defined and not enable_thinking %}x{% endif %}"
    assert as_meant(thinks, bos="", eos="") == thinks
