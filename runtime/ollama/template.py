"""A file's chat template for Ollama: the Go template that equals it, where answers end, what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import partial

from gguf import Keys, TokenType

from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.reader import GgufFile
from tritgguf.converter.ollama.repack import guarded
from tritgguf.converter.ollama.samples import PADDED, SAMPLES, Message
from tritgguf.converter.ollama.translate import Translation, translate
from tritgguf.converter.tokenizer.chat_template import end_of_turn
from tritgguf.converter.tokenizer.special_ids import ALWAYS_ENDS_GENERATION
from tritgguf.runtime.chat.chat_template import ChatTemplate, special_text

# What a model without a chat template gets: the text alone, which is also what Ollama does by itself.
BASE_TEMPLATE = "{{ .Prompt }}"
_SPECIAL = (TokenType.CONTROL, TokenType.USER_DEFINED)
# Two dates that no format shows alike.
_DATES = (date(2001, 1, 2), date(2023, 11, 30))


@dataclass(frozen=True)
class ChatTemplateFacts:
    """A Go template for TEMPLATE, or None where only the file's own jinja will do; `family` says which it is.

    `jinja` is what the file's chat template should become then. `notes` say what the user should know.
    """

    template: str | None
    family: str
    stops: tuple[str, ...]
    jinja: str | None
    notes: tuple[str, ...]


def chat_template_facts(file: GgufFile) -> ChatTemplateFacts:
    """Translate the file's chat template; EngineError where it doesn't render here, as it won't in Ollama either."""
    jinja = file.value(Keys.Tokenizer.CHAT_TEMPLATE)
    texts = _SpecialTexts(file)
    if not isinstance(jinja, str):
        note = "the file has no chat template, so it is a base model: the Modelfile hands on the text alone"
        return ChatTemplateFacts(BASE_TEMPLATE, "none", texts.endings(None), None, (note,))
    renderer = ChatTemplate(jinja, bos=texts.bos, eos=texts.eos)
    found = translate(partial(_render, renderer), bos=texts.bos, eos=texts.eos, add_bos=texts.add_bos)
    turn_end = end_of_turn(jinja, texts.special, {"bos_token": texts.bos, "eos_token": texts.eos})
    notes = (*_ending_notes(texts, turn_end), *_bos_notes(texts, renderer))
    if isinstance(found, Translation):
        stops = tuple(dict.fromkeys((*found.stops, *texts.endings(turn_end))))
        return ChatTemplateFacts(found.template, found.family, stops, None, (*notes, *_trim_notes(renderer)))
    own = _checked_guard(jinja, texts, renderer)
    near = f"nearest is {found.family}, {found.n_alike} of {found.n_samples} conversations alike"
    note = (
        f"no Go template known here renders what the file's chat template does ({_dated(jinja, texts) or near}): "
        "Ollama 0.30 and newer will render the file's own, guarded against being taken for another; for older ones, "
        "write a TEMPLATE into the Modelfile"
    )
    return ChatTemplateFacts(None, "the file's own jinja", texts.endings(turn_end), own, (note, *notes))


class _SpecialTexts:
    """The texts of a file's special tokens."""

    def __init__(self, file: GgufFile) -> None:
        keys = Keys.Tokenizer
        self.bos, self.eos, self.eot, self.eom = (
            special_text(file.metadata, key) for key in (keys.BOS_ID, keys.EOS_ID, keys.EOT_ID, keys.EOM_ID)
        )
        self.add_bos = file.value(keys.ADD_BOS) is True
        tokens, kinds = file.value(keys.LIST), file.value(keys.TOKEN_TYPE)
        pairs = zip(tokens, kinds, strict=False) if isinstance(tokens, list) and isinstance(kinds, list) else ()
        self.special = [str(token) for token, kind in pairs if kind in _SPECIAL]

    def endings(self, turn_end: str | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for text in (turn_end, self.eos, self.eot) if text))


def _render(renderer: ChatTemplate, messages: Sequence[Message], think: bool | None) -> str:
    """What transformers would render; an answer's thoughts are "reasoning_content" there."""
    named = [{("reasoning_content" if key == "thinking" else key): text for key, text in m.items()} for m in messages]
    return renderer.render(named, think=think)


def _ending_notes(texts: _SpecialTexts, turn_end: str | None) -> list[str]:
    if turn_end is None:
        return [
            "the chat template ends an answer with no special token; Ollama will stop at eos and the stop texts alone"
        ]
    if turn_end == texts.eos:
        return []
    heard = turn_end in (texts.eot, texts.eom) or turn_end in ALWAYS_ENDS_GENERATION
    also = "llama.cpp ends answers there too" if heard else "without that line answers would run on"
    return [
        f"answers end with {turn_end}, but the file's eos token is {texts.eos!r}: {turn_end} is a stop text ({also})"
    ]


def _bos_notes(texts: _SpecialTexts, renderer: ChatTemplate) -> list[str]:
    writes_bos = bool(texts.bos) and _render(renderer, SAMPLES[0].messages, None).startswith(texts.bos)
    if texts.add_bos and not writes_bos:
        return [
            f"the file adds {texts.bos} before every prompt though its chat template writes none, here as in Ollama; "
            "if the model was trained without it, add_bos_token in tokenizer_config.json should be false"
        ]
    return []


def _trim_notes(renderer: ChatTemplate) -> list[str]:
    text = _render(renderer, PADDED.messages, None)
    if all(message["content"] in text for message in PADDED.messages):
        return []
    return ["the chat template trims spaces around messages; Ollama has no way to, so send it none"]


def _dated(jinja: str, texts: _SpecialTexts) -> str:
    """Say so where the text depends on the day: a Go template can't know it."""
    rendered = set()
    for day in _DATES:
        renderer = ChatTemplate(jinja, bos=texts.bos, eos=texts.eos, clock=partial(datetime.combine, day, time()))
        rendered.add(_render(renderer, SAMPLES[0].messages, None))
    return "it writes the current date" if len(rendered) > 1 else ""


def _checked_guard(jinja: str, texts: _SpecialTexts, renderer: ChatTemplate) -> str:
    """The guarded template, which must render as before."""
    own = guarded(jinja)
    again = ChatTemplate(own, bos=texts.bos, eos=texts.eos)
    for sample in SAMPLES:
        if _render(again, sample.messages, sample.think) != _render(renderer, sample.messages, sample.think):
            raise EngineError(
                "the comment that guards the chat template changes what it renders; write a TEMPLATE for Ollama by hand"
            )
    return own
