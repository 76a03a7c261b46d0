"""Choose the Go template that renders what a file's jinja template renders, by rendering both on conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritgguf.converter.ollama.families import EOS, FAMILIES
from tritgguf.converter.ollama.go_template import GoTemplate
from tritgguf.converter.ollama.prompt import Message, go_literal, ollama_prompt

Render = Callable[[Sequence[Message], "bool | None"], str]


@dataclass(frozen=True)
class Sample:
    """A conversation, and whether thinking was asked for; its last message is a question."""

    messages: tuple[Message, ...]
    think: bool | None = None


@dataclass(frozen=True)
class Translation:
    """The family that fits, its template with what this model puts before a conversation, and stop texts."""

    family: str
    template: str
    stops: tuple[str, ...]


@dataclass(frozen=True)
class NearMiss:
    """No family fits: the one that renders most of the samples alike."""

    family: str
    n_alike: int
    n_samples: int


def _said(*contents: str, system: str | None = None, thinking: str = "") -> tuple[Message, ...]:
    """A conversation of questions and answers in turn; `thinking` precedes each answer."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, content in enumerate(contents):
        if number % 2 == 0:
            messages.append({"role": "user", "content": content})
        else:
            thoughts = {"thinking": thinking} if thinking else {}
            messages.append({"role": "assistant", "content": content, **thoughts})
    return tuple(messages)


_QUESTION = "What is 2 + 2?"
_TURNS = ("Two lines,\nand a tab:\t.", "Grüße & <b>café</b> 'quoted' \"twice\" {{ braces }} {% tag %}", "你好 🙂")
_LONG = ("one", "two\n\nthree", "four", "five", "six")
_CONVERSATIONS = (
    _said(_QUESTION),
    _said(_QUESTION, system="Be brief.\n\nAnswer in French."),
    _said(*_TURNS),
    _said(*_TURNS, system="You are {{ .Name }}."),
    _said(*_LONG),
    _said(*_LONG, system="Count."),
)
SAMPLES = (
    *(Sample(messages, think) for messages in _CONVERSATIONS for think in (None, True, False)),
    *(Sample(_said(*_TURNS, thinking="Hm.\n\nYes."), think) for think in (None, True, False)),
)
# Templates that trim their messages can't be matched by a Go template here: Ollama has no function that trims.
PADDED = Sample(_said("  spaces around \n", "\n answer  ", " more "))


def translate(render: Render, *, bos: str, eos: str, add_bos: bool) -> Translation | NearMiss:
    """Return the first family whose text equals the jinja's on every sample, or the nearest.

    `render` gives the jinja's text for messages and whether thinking is asked for (None: not said). `add_bos` says that
    the tokenizer puts BOS before a prompt, as Ollama's does too: then the Go template must not write it.
    """
    wanted = [render(sample.messages, sample.think) for sample in SAMPLES]
    readings = _readings(wanted, bos, add_bos=add_bos)
    scores = []
    for family in FAMILIES:
        body = family.template.replace(EOS, go_literal(eos))
        for start, texts in readings:
            n_alike, preface = _alike(body, texts)
            if n_alike == len(SAMPLES):
                return Translation(family.name, go_literal(start) + preface + body, family.stops)
            scores.append((n_alike, family.name))
    n_alike, name = max(scores, key=lambda score: score[0])
    return NearMiss(name, n_alike, len(SAMPLES))


def _readings(wanted: list[str], bos: str, *, add_bos: bool) -> list[tuple[str, list[str]]]:
    """Return what the Go template may begin with, and the texts after it.

    BOS may be a text of its own or what any turn begins with, as in SmolLM2; Ollama would write it twice where the
    tokenizer adds it.
    """
    if not bos or not all(text.startswith(bos) for text in wanted):
        return [("", wanted)]
    after = [text[len(bos) :] for text in wanted]
    return [("", after)] if add_bos else [("", wanted), (bos, after)]


def _alike(body: str, wanted: Sequence[str]) -> tuple[int, str]:
    """Return how many samples a template renders alike, with the Go text of what the jinja says without a system."""
    alone = ollama_prompt(GoTemplate(body), SAMPLES[0].messages)
    preface = ""
    if wanted[0] != alone and wanted[0].endswith(alone):
        said = go_literal(wanted[0].removesuffix(alone))
        preface = f"{{{{ if not .System }}}}{said}{{{{ end }}}}"
    template = GoTemplate(preface + body)
    texts = [ollama_prompt(template, sample.messages, think=sample.think) for sample in SAMPLES]
    return sum(text == want for text, want in zip(texts, wanted, strict=True)), preface
