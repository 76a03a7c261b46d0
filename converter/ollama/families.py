"""The Go templates for Ollama, as data: one row per prompt format.

A row is chosen by what it renders, never by its name (`translate.py`). {eos} stands for the text of the file's end
token. No template begins with `{{-`, which would trim the text that `translate.py` may put before it: BOS, or a default
system message. After a change here, run `make golden-go`.
"""

from __future__ import annotations

from dataclasses import dataclass

EOS = "{eos}"


@dataclass(frozen=True)
class Family:
    """A Go template and its stop texts; the file's own end-of-turn token is added to these."""

    name: str
    template: str
    stops: tuple[str, ...]


_LAST_USER = (
    '{{ $last := -1 }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $last = $i }}{{ end }}{{ end }}'
)
_HAS_SYSTEM = (  # unlike .System, true for an empty system message too
    '{{ $system := false }}{{ range .Messages }}{{ if eq .Role "system" }}{{ $system = true }}{{ end }}{{ end }}'
)
_CHATML_STOPS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_LLAMA3_STOPS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_MISTRAL_STOPS = ("[INST]", "[/INST]")
_FALCON3_STOPS = ("<|system|>", "<|user|>", "<|assistant|>")

# Thoughts are kept only in an answer after the last question, as in Qwen3's own template. Ollama offers thinking to
# clients because the template has .Thinking, and takes the tags from the text around it. Ollama before 0.9 has no
# .Thinking and fails on it; `and` reads it only if $i is after $last, which is rare.
_QWEN3_MESSAGES = (
    _LAST_USER + "{{ range $i, $_ := .Messages }}<|im_start|>{{ .Role }}\n"
    '{{ if and (gt $i $last) (eq .Role "assistant") .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}'
    "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)


def _mistral(
    before: str, opening: str, closing: str, answer: str, after: str, *, joint: str = "\n\n", in_last: bool = False
) -> str:
    """Return [INST] turns. Versions differ in spaces, and in whether the first or last question has the system text.

    `joint` stands after the system text: one line end if the jinja has no system role, as llama.cpp joins them then.
    """
    here = "and $system (eq $i $last)" if in_last else "$system"
    system = f"{{{{ if {here} }}}}{{{{ $.System }}}}{joint}{{{{ $system = false }}}}{{{{ end }}}}"
    return (
        _HAS_SYSTEM
        + (_LAST_USER if in_last else "")
        + '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}'
        + f"{before}{opening}{system}{{{{ .Content }}}}{closing}"
        + f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ .Content }}}}{EOS}{after}{{{{ end }}}}{{{{ end }}}}'
    )


FAMILIES = (
    Family(
        "chatml",
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        _CHATML_STOPS,
    ),
    Family(
        "qwen3",
        _QWEN3_MESSAGES + "{{ if and $.IsThinkSet (not $.Think) }}<think>\n\n</think>\n\n{{ end }}",
        _CHATML_STOPS,
    ),
    Family(
        "qwen3.5",
        _QWEN3_MESSAGES + "{{ if and $.IsThinkSet (not $.Think) }}<think>\n\n</think>\n\n{{ else }}<think>\n{{ end }}",
        _CHATML_STOPS,
    ),
    Family(
        "minicpm5",
        _QWEN3_MESSAGES
        + "{{ if $.IsThinkSet }}{{ if $.Think }}<think>\n{{ else }}<think>\n\n</think>\n\n{{ end }}{{ end }}",
        _CHATML_STOPS,
    ),
    Family("qwen3-always-thinking", _QWEN3_MESSAGES + "<think>\n", _CHATML_STOPS),
    Family(
        "llama3",
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        _LLAMA3_STOPS,
    ),
    Family(
        "llama3.1",
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n{{ .System }}<|eot_id|>"
        '{{ range .Messages }}{{ if ne .Role "system" }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n'
        "{{ .Content }}<|eot_id|>{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
        _LLAMA3_STOPS,
    ),
    Family("mistral-0.1", _mistral("", "[INST] ", " [/INST]", "", " ", joint="\n"), _MISTRAL_STOPS),
    Family("mistral-0.2", _mistral("", "[INST] ", " [/INST]", "", "", joint="\n"), _MISTRAL_STOPS),
    Family("mistral-v1", _mistral(" ", "[INST] ", " [/INST]", " ", ""), _MISTRAL_STOPS),
    Family("mistral-v3", _mistral("", "[INST] ", "[/INST]", " ", "", in_last=True), _MISTRAL_STOPS),
    Family("mistral-tekken", _mistral("", "[INST]", "[/INST]", "", "", in_last=True), _MISTRAL_STOPS),
    Family(
        "falcon3",
        "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}"
        f'{{{{ if eq .Role "assistant" }}}}{EOS}{{{{ end }}}}\n{{{{ end }}}}<|assistant|>\n',
        _FALCON3_STOPS,
    ),
    Family(
        "falcon3-plain",
        "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}\n{{ end }}<|assistant|>\n",
        _FALCON3_STOPS,
    ),
    Family(
        "zephyr",
        f"{{{{ range .Messages }}}}<|{{{{ .Role }}}}|>\n{{{{ .Content }}}}{EOS}\n{{{{ end }}}}<|assistant|>\n",
        _FALCON3_STOPS,
    ),
    Family(
        "gemma",
        '{{ $first := true }}{{ range .Messages }}{{ if eq .Role "user" }}<start_of_turn>user\n'
        "{{ if and $.System $first }}{{ $.System }}\n{{ end }}{{ $first = false }}"
        '{{ .Content }}<end_of_turn>\n{{ else if eq .Role "assistant" }}<start_of_turn>model\n'
        "{{ .Content }}<end_of_turn>\n{{ end }}{{ end }}<start_of_turn>model\n",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        "bitnet",
        '{{ range .Messages }}{{ if eq .Role "system" }}System{{ else if eq .Role "user" }}User'
        "{{ else }}Assistant{{ end }}: {{ .Content }}<|eot_id|>{{ end }}Assistant: ",
        ("<|eot_id|>",),
    ),
)
