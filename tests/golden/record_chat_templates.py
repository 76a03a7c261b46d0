"""Records chat_templates.json: what transformers renders for templates that use each feature once.

Run it in an environment with transformers (the `golden` extra): python -m tests.golden.record_chat_templates
"""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

GOLDEN = Path(__file__).with_name("chat_templates.json")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "whitespace": """
{%- for message in messages %}
    {% if message['role'] == 'user' %}
    [U] {{ message['content'] }}
    {% else %}
    [{{ message.role | upper }}] {{- message.content | trim }}
    {% endif %}
{% endfor %}
  {%- if add_generation_prompt %} [A]{% endif %}
""",
    "tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% if loop.index0 > 2 %}{% break %}{% endif %}{{ loop.index }}:{{ m.content }};{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(first=true) %}{% for m in messages %}{% if not ns.first %}|{% endif %}"
        "{% set ns.first = false %}{{ m.role }}={{ m.content }}{% endfor %}"
    ),
    "macro": "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "tojson": "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2) }}",
    "generation": (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    ),
    "absent things": (
        "{% if tools is not none %}TOOLS{% endif %}{% if documents %}DOCUMENTS{% endif %}"
        "{% if enable_thinking is defined %}THINK{% endif %}{{ nothing }}"
        "{{ messages[-1]['content'] }}{{ strftime_now('no date') }}"
    ),
    "strict turns": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate user/assistant') }}{% endif %}({{ m.content }}){% endfor %}"
    ),
    "forbidden": "{{ ''.__class__.__mro__ }}",
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": '  Grüße & <b>"quotes"</b> 🙂\n'}],
    "turns": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "\n two {{ not a template }}"},
        {"role": "user", "content": "three"},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}


def render(template: str, messages: list[dict[str, str]], prompt: bool) -> str | None:
    """The text, or None where transformers raises an error."""
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, **TOKENS)
    except jinja2.TemplateError:
        return None
    return rendered[0]


def main() -> None:
    """Write the golden file."""
    cases = [
        {"template": name, "conversation": conversation, "prompt": prompt, "text": render(template, messages, prompt)}
        for name, template in TEMPLATES.items()
        for conversation, messages in CONVERSATIONS.items()
        for prompt in (True, False)
    ]
    golden = {"templates": TEMPLATES, "conversations": CONVERSATIONS, "tokens": TOKENS, "cases": cases}
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
