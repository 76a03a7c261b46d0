"""Chat templates that models publish, and the family of Go templates that must be found for each.

Short ones are as published; long ones are cut down to what they do without tools. test_real_templates.py fetches the
real long ones.
"""

from __future__ import annotations

from dataclasses import dataclass

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_MISTRAL_SYSTEM = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.WHERE and system_message is defined %}
            {{- 'OPEN' + system_message + '\\n\\n' + message['content'] + 'CLOSE' }}
        {%- else %}
            {{- 'OPEN' + message['content'] + 'CLOSE' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- 'ANSWER' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
_QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    PROMPT
{%- endif %}"""
_OPEN = "{{- '<think>\\n' }}"
_EMPTY = "{{- '<think>\\n\\n</think>\\n\\n' }}"
_IS_FALSE = "enable_thinking is defined and enable_thinking is false"


def _qwen3(prompt: str) -> str:
    return _QWEN3.replace("PROMPT", prompt)


def _mistral(where: str, opening: str, closing: str, answer: str) -> str:
    parts = {"WHERE": where, "OPEN": opening, "CLOSE": closing, "ANSWER": answer}
    text = _MISTRAL_SYSTEM
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


def _chatml(default: str = "") -> str:
    system = f"{{% if loop.first and messages[0]['role'] != 'system' %}}{{{{ '{default}' }}}}{{% endif %}}"
    return (
        "{% for message in messages %}" + (system if default else "") + "{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


@dataclass(frozen=True)
class Case:
    """A model's template and special tokens, and the family to be found."""

    family: str
    jinja: str
    bos: str = ""
    eos: str = "</s>"
    add_bos: bool = False


_BEGIN, _EOT = "<|begin_of_text|>", "<|eot_id|>"
CASES = {
    "chatml": Case("chatml", _chatml(), eos="<|im_end|>"),
    "qwen2.5": Case(
        "chatml",
        _chatml(
            "<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n"
        ),
        eos="<|im_end|>",
    ),
    "smollm2": Case(  # whose BOS is what every turn begins with
        "chatml",
        _chatml("<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n"),
        bos="<|im_start|>",
        eos="<|im_end|>",
    ),
    "chatml-with-bos": Case("chatml", "{{ bos_token }}" + _chatml(), bos="<s>"),
    "qwen3": Case(
        "qwen3", _QWEN3.replace("PROMPT", f"{{%- if {_IS_FALSE} %}}{_EMPTY}{{%- endif %}}"), eos="<|im_end|>"
    ),
    "qwen3.5": Case(
        "qwen3.5",
        _qwen3(f"{{%- if {_IS_FALSE} %}}{_EMPTY}{{%- else %}}{_OPEN}{{%- endif %}}"),
        eos="<|im_end|>",
    ),
    "minicpm5": Case(
        "minicpm5",
        _qwen3(f"{{%- if {_IS_FALSE} %}}{_EMPTY}{{%- elif enable_thinking is defined %}}{_OPEN}{{%- endif %}}"),
        eos="<|im_end|>",
    ),
    "qwen3-thinking-2507": Case("qwen3-always-thinking", _qwen3(_OPEN), eos="<|im_end|>"),
    "llama3": Case(
        "llama3",
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
        " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        bos=_BEGIN,
        eos=_EOT,
        add_bos=True,
    ),
    "llama3.1": Case(
        "llama3.1",
        "{{- bos_token }}{%- set system = '' %}{%- if messages[0]['role'] == 'system' %}"
        "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}"
        "{{- 'Today Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{- message['content'] | trim + '<|eot_id|>' }}"
        "{%- endfor %}{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
        bos=_BEGIN,
        eos=_EOT,
        add_bos=True,
    ),
    "mistral-0.1": Case(
        "mistral-0.1",
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}",
        bos="<s>",
        add_bos=True,
    ),
    "mistral-0.2": Case(
        "mistral-0.2",
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token}}{% endif %}{% endfor %}",
        bos="<s>",
        add_bos=True,
    ),
    "mistral-v1": Case("mistral-v1", _mistral("first", " [INST] ", " [/INST]", " "), bos="<s>", add_bos=True),
    "mistral-v3": Case("mistral-v3", _mistral("last", "[INST] ", "[/INST]", " "), bos="<s>", add_bos=True),
    "mistral-nemo": Case("mistral-tekken", _mistral("last", "[INST]", "[/INST]", ""), bos="<s>", add_bos=True),
    "falcon3": Case(
        "falcon3",
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
        "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
        "{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
        eos="<|endoftext|>",
    ),
    "falcon3-plain": Case(
        "falcon3-plain",
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        eos="<|endoftext|>",
    ),
    "tinyllama": Case(
        "zephyr",
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        bos="<s>",
        add_bos=True,
    ),
    "gemma": Case(
        "gemma",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}" + _ALTERNATE + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        bos="<bos>",
        eos="<eos>",
        add_bos=True,
    ),
    "bitnet-2b-4t": Case(
        "bitnet",
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        bos=_BEGIN,
        eos=_EOT,
        add_bos=True,
    ),
    "bitnet-2b-4t-no-bos": Case(
        "bitnet",
        "{% for message in messages %}"
        "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        bos=_BEGIN,
        eos=_EOT,
    ),
}
# As in Llama 3.1's own: a date for where it is given none, and tools.
FIXED_DATE = (
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    + CASES["llama3.1"].jinja.replace("'Today Date: 26 Jul 2024", "'Today Date: ' + date_string + '")
    + "{% if tools %}{% endif %}"
)
