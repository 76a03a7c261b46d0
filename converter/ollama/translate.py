"""Choose the Go template that renders what a file's jinja template renders, by comparing texts of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritgguf.converter.ollama.families import EOS, FAMILIES, Family
from tritgguf.converter.ollama.go_literal import go_literal
from tritgguf.converter.ollama.renderings import empty_system_rendering, renderings
from tritgguf.converter.ollama.samples import SAMPLES, Message

# As in the jinja: .System would be empty for an empty system message too, which then stood after the default one.
_WITHOUT_SYSTEM = (
    '{{{{ range $i, $_ := .Messages }}}}{{{{ if and (eq $i 0) (ne .Role "system") }}}}{}{{{{ end }}}}{{{{ end }}}}'
)
Render = Callable[[Sequence[Message], "bool | None"], str]


@dataclass(frozen=True)
class Translation:
    """The family that fits, its template filled with this model's texts, and the stop texts.

    `empty_system` is what the template renders of EMPTY_SYSTEM, which the family isn't chosen by.
    """

    family: str
    template: str
    stops: tuple[str, ...]
    empty_system: str


@dataclass(frozen=True)
class NearMiss:
    """No family fits; `family` is the one that renders the most samples alike."""

    family: str
    n_alike: int
    n_samples: int


@dataclass(frozen=True)
class Filling:
    """A model's own texts in a family's template."""

    eos: str
    bos: str = ""  # before every conversation
    default: str = ""  # before a conversation that doesn't begin with a system message, even an empty one

    def template(self, family: Family) -> str:
        """Return the family's Go template with these texts in it."""
        default = _WITHOUT_SYSTEM.format(go_literal(self.default)) if self.default else ""
        return go_literal(self.bos) + default + family.template.replace(EOS, go_literal(self.eos))

    def empty_system(self, family: Family) -> str:
        """Return what that template renders for EMPTY_SYSTEM."""
        return self.bos + empty_system_rendering(family).replace(EOS, self.eos)

    def texts(self, family: Family) -> list[str]:
        """Return what that template renders for each sample; the tests have Go render it, and compare."""
        return [
            self.bos + ("" if sample.has_system else self.default) + text.replace(EOS, self.eos)
            for sample, text in zip(SAMPLES, renderings(family), strict=True)
        ]


def translate(render: Render, *, bos: str, eos: str, add_bos: bool) -> Translation | NearMiss:
    """Return the first family whose texts equal the jinja's on every sample, or else the nearest.

    `render` returns the jinja's text for messages and for thinking on, off or neither (None). `add_bos` tells that the
    tokenizer puts BOS before a prompt, in Ollama too: then the Go template must not write it.
    """
    wanted = [render(sample.messages, sample.think) for sample in SAMPLES]
    writes_bos = bool(bos) and all(text.startswith(bos) for text in wanted)
    if writes_bos and add_bos:
        wanted = [text.removeprefix(bos) for text in wanted]
    # Without add_bos, BOS can be a text before the conversation, or what every turn begins with, as in SmolLM2.
    beginnings = ("", bos) if writes_bos and not add_bos else ("",)
    scores = []
    for family in FAMILIES:
        for beginning in beginnings:
            filling = _fitting(family, wanted[0], eos, beginning)
            n_alike = sum(text == want for text, want in zip(filling.texts(family), wanted, strict=True))
            if n_alike == len(SAMPLES):
                return Translation(family.name, filling.template(family), family.stops, filling.empty_system(family))
            scores.append((n_alike, family.name))
    n_alike, name = max(scores, key=lambda score: score[0])
    return NearMiss(name, n_alike, len(SAMPLES))


def _fitting(family: Family, wanted: str, eos: str, bos: str) -> Filling:
    """Return the filling whose default text completes the first sample, which has no system message."""
    conversation = renderings(family)[0].replace(EOS, eos)
    after_bos = wanted.removeprefix(bos)
    default = after_bos.removesuffix(conversation) if after_bos.endswith(conversation) else ""
    return Filling(eos, bos, default)
