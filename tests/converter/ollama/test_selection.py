"""Which template Ollama renders; test_real_templates.py has what a real server did with published ones."""

from __future__ import annotations

import pytest

from tests.chat_templates import CASES
from tritgguf.converter.ollama.families import FAMILIES
from tritgguf.converter.ollama.selection import go_offers, jinja_offers, more_in_jinja

CHATML = CASES["chatml"].jinja


@pytest.mark.parametrize(
    ("jinja", "offers"),
    [
        (CHATML, ()),
        (CHATML + "{% if tools %}{{ tools }}{% endif %}", ("tools",)),
        (CHATML + "{{ message.tool_calls }}", ("tools",)),
        (CHATML + "<think>", ()),
        (CHATML + "<think></think>", ("thinking",)),
        (CHATML + "{{ content.split('</think>')[-1] }}", ("thinking",)),
        (CHATML + '{{ content.split("</think>")[-1] }}', ("thinking",)),
        (CHATML + "{{ content.split('</think>')[-1] }}{{ reasoning_content }}", ()),
        (CHATML + "{{ tools }}<think></think>", ("tools", "thinking")),
    ],
)
def test_what_a_jinja_offers(jinja: str, offers: tuple[str, ...]) -> None:
    assert jinja_offers(jinja) == offers


def test_what_the_go_templates_offer() -> None:
    think = {family.name for family in FAMILIES if go_offers(family.template)}
    assert think == {"qwen3", "qwen3.5", "minicpm5", "qwen3-always-thinking"}
    assert not any(word in family.template for family in FAMILIES for word in (".Tools", ".ToolCalls", ".Suffix"))


def test_the_jinja_is_rendered_only_if_it_offers_more() -> None:
    plain, thinks = (next(f.template for f in FAMILIES if f.name == name) for name in ("chatml", "qwen3"))
    assert more_in_jinja("<think></think>", plain) == ("thinking",)
    assert more_in_jinja("<think></think>", thinks) == ()
    assert more_in_jinja("tools<think></think>", thinks) == ("tools", "thinking")
    assert more_in_jinja("tools", thinks) == (), "as many, although others"
