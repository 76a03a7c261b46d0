"""The Go templates and conversations that the tests need Go's renderings of."""

from __future__ import annotations

from collections.abc import Iterator

from tests import paths
from tests.modelfile_reader import read
from tritgguf.converter.ollama.families import FAMILIES
from tritgguf.converter.ollama.go_literal import go_literal
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM, SAMPLES, Message, Sample
from tritgguf.converter.ollama.translate import Filling
from tritgguf.runtime.ollama.publish import QUESTION

ODD_TEXT = 'Odd: {{ and """three quotes""" and {{{ , \u00a0, \u200b, \U000e0041, { and " and {'
LITERALS = (
    ODD_TEXT,
    *("{{", "{{{", "{", "a {{{{ b", '{"""', '"""', '""""""', "{\u00a0", '{"a": {"b": 1}}', "}}", "{{- x -}}", " -}} "),
    *("plain\n\ttext", "\u2028\ufeff\r", "a\u00a0b\u200bc\ufeff", "back\\slash {{ \\ }}", "`{{`", "Grüße 你好 🙂", ""),
)
# Each of a model's texts is full of what must be escaped, and ends with a brace before the template's next action.
ODD_FILLING = Filling(eos=f"<eos {ODD_TEXT}", bos=f"<bos {ODD_TEXT}", default=f"<default {ODD_TEXT}")


def _messages(*contents: str, roles: str = "") -> tuple[Message, ...]:
    names = {"s": "system", "u": "user", "a": "assistant"}
    return tuple({"role": names[role], "content": text} for role, text in zip(roles, contents, strict=True))


# A system message with one question, and two questions: what no family is chosen by.
OTHER = tuple(
    Sample(messages, think)
    for messages in (_messages("Ö", "Only this.", roles="su"), _messages("a", "b", "c", roles="uau"))
    for think in (None, True, False)
)
THOUGHTS = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "hm"})
THINKING = (Sample(THOUGHTS), Sample((*THOUGHTS, {"role": "user", "content": "c"})))
# The conversation of llama.cpp's tests/test-chat-template.cpp, as it is and trimmed.
_TALK = ("You are a helpful assistant", "Hello", "Hi there", "Who are you")
TALK = _messages(*_TALK, "   I am an assistant   ", "Another question", roles="suauau")
TRIMMED_TALK = _messages(*_TALK, "I am an assistant", "Another question", roles="suauau")
ASKED = (_messages(QUESTION, roles="u"), _messages("Be nice.", QUESTION, roles="su"))
IN_A_ROW = _messages("a", "b", "c", "d", "e", "f", roles="ssuuas")
ROLES_TEMPLATE = "{{ range .Messages }}[{{ .Role }}:{{ .Content }}]{{ end }}{{ .System }}"
THINK_TEMPLATE = "{{ .IsThinkSet }} {{ .Think }}"


def modelfile_templates() -> dict[str, str]:
    """Return the TEMPLATE of each golden Modelfile."""
    files = sorted((paths.GOLDEN / "modelfiles").iterdir())
    return {path.stem: dict(read(path.read_text(encoding="utf-8")))["TEMPLATE"] for path in files}


def cases() -> Iterator[tuple[str, Sample]]:
    """Yield each template with each conversation that it must be rendered on."""
    for family in FAMILIES:
        yield from ((ODD_FILLING.template(family), sample) for sample in (*SAMPLES, EMPTY_SYSTEM))
        yield from ((family.template, Sample(talk)) for talk in (TALK, TRIMMED_TALK))
    for template in modelfile_templates().values():
        yield from ((template, sample) for sample in (*OTHER, *THINKING, EMPTY_SYSTEM))
        yield from ((template, Sample(messages)) for messages in ASKED)
    for text in LITERALS:
        yield go_literal(text), Sample(())
    yield ROLES_TEMPLATE, Sample(IN_A_ROW)
    yield from ((THINK_TEMPLATE, Sample((), think)) for think in (None, True, False))
