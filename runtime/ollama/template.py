"""A file's chat template for Ollama: the Go template that equals it, the stop texts, and what users should know."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time
from functools import partial

from gguf import Keys, TokenType

from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.reader import GgufFile
from tritgguf.converter.ollama.repack import GUARD, guarded
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM, PADDED, SAMPLES
from tritgguf.converter.ollama.selection import more_in_jinja
from tritgguf.converter.ollama.translate import Translation, translate
from tritgguf.converter.tokenizer.special_ids import ALWAYS_ENDS_GENERATION
from tritgguf.converter.tokenizer.template_keys import end_of_turn, special_text
from tritgguf.runtime.chat.chat_template import ChatTemplate
from tritgguf.runtime.ollama.jinja_there import as_meant, render

# For a model without a chat template: the user's text alone, as Ollama does without a TEMPLATE.
BASE_TEMPLATE = "{{ .Prompt }}"
_GUARDED, _WITHOUT_DATE = "its chat template needs the guard", "Ollama would put today's date into its chat template"
_SPECIAL = (TokenType.CONTROL, TokenType.USER_DEFINED)
# Two dates that differ in any date format: another day, month, year and weekday.
_DATES = (date(2001, 1, 2), date(2023, 11, 30))


@dataclass(frozen=True)
class ChatTemplateFacts:
    """A Go template for TEMPLATE, or None if no family equals the file's jinja; `family` is a name to show.

    `jinja` is the chat template for a repacked file, for the reason in `why_jinja`; None if the file's own will do.
    `notes` are what the user should know.
    """

    template: str | None
    family: str
    stops: tuple[str, ...]
    jinja: str | None
    notes: tuple[str, ...]
    why_jinja: str = ""


def chat_template_facts(file: GgufFile) -> ChatTemplateFacts:
    """Translate the file's chat template; raise EngineError if the template fails, as it would in Ollama."""
    jinja = file.value(Keys.Tokenizer.CHAT_TEMPLATE)
    texts = _SpecialTexts(file)
    if not isinstance(jinja, str):
        note = "the file has no chat template, so it is a base model: Ollama will send it the user's text alone"
        return ChatTemplateFacts(BASE_TEMPLATE, "none", texts.endings(None), None, (note,))
    renderer = ChatTemplate(jinja, bos=texts.bos, eos=texts.eos)
    found = translate(partial(render, renderer), bos=texts.bos, eos=texts.eos, add_bos=texts.add_bos)
    turn_end = end_of_turn(jinja, texts.special, {"bos_token": texts.bos, "eos_token": texts.eos})
    notes = (*_ending_notes(texts, turn_end), *_bos_notes(texts, renderer))
    if isinstance(found, Translation):
        stops = tuple(dict.fromkeys((*found.stops, *texts.endings(turn_end))))
        preferred, instead = _preferred_jinja(jinja, found, texts)
        notes = (*instead, *notes, *_trim_notes(renderer), *_empty_system_notes(found, texts, renderer))
        return ChatTemplateFacts(found.template, found.family, stops, preferred, notes, _WITHOUT_DATE)
    meant = as_meant(jinja, bos=texts.bos, eos=texts.eos)
    own = _checked_guard(meant or jinja, texts, renderer)
    near = f"nearest is {found.family}, {found.n_alike} of {found.n_samples} conversations alike"
    is_guarded = own.startswith(GUARD)
    guard = " after a comment that stops Ollama from replacing it" if is_guarded else ""
    note = (
        f"no known Go template renders the same as the file's chat template ({_dated(jinja, texts) or near}): "
        f"Ollama 0.30 and newer will render the file's own{guard}; for older versions, write a TEMPLATE into the "
        "Modelfile"
    )
    notes = (note, *_date_notes(jinja, meant), *notes)
    why = _GUARDED if is_guarded else _WITHOUT_DATE
    return ChatTemplateFacts(None, "the file's own jinja", texts.endings(turn_end), own, notes, why)


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


def _preferred_jinja(jinja: str, found: Translation, texts: _SpecialTexts) -> tuple[str | None, list[str]]:
    """Return the jinja that a repacked file needs, None if its own will do, and notes if Ollama renders the jinja."""
    offered = more_in_jinja(jinja, found.template)
    if not offered:
        return None, []
    meant = as_meant(jinja, bos=texts.bos, eos=texts.eos)
    note = (
        "Ollama 0.30 and newer render the file's own chat template instead of the TEMPLATE, because it offers "
        f"{' and '.join(offered)}; OLLAMA_GO_TEMPLATE=1, set where Ollama runs, makes it take the TEMPLATE"
    )
    return (None if meant == jinja else meant), [note, *_date_notes(jinja, meant)]


def _date_notes(jinja: str, meant: str | None) -> list[str]:
    if meant == jinja:
        return []
    if meant is None:
        return ["Ollama 0.30 and newer render the file's chat template differently from transformers"]
    return [
        "Ollama 0.30 and newer would write today's date where the chat template has a fixed one: the file for Ollama "
        "gets a line before its chat template that keeps the fixed date"
    ]


def _empty_system_notes(found: Translation, texts: _SpecialTexts, renderer: ChatTemplate) -> list[str]:
    try:
        text = render(renderer, EMPTY_SYSTEM.messages, None)
    except EngineError:
        text = None
    if text is not None and (text.removeprefix(texts.bos) if texts.add_bos else text) == found.empty_system:
        return []
    return ["the TEMPLATE treats an empty system message differently from the chat template: don't send any"]


def _ending_notes(texts: _SpecialTexts, turn_end: str | None) -> list[str]:
    if turn_end is None:
        return [
            "the chat template ends an answer without a special token; Ollama will stop only at eos and the stop texts"
        ]
    if turn_end == texts.eos:
        return []
    known_end = turn_end in (texts.eot, texts.eom) or turn_end in ALWAYS_ENDS_GENERATION
    why = "llama.cpp also stops there" if known_end else "without it, answers would not stop"
    return [
        f"answers end with {turn_end}, but the file's eos token is {texts.eos!r}: {turn_end} is a stop text ({why})"
    ]


def _bos_notes(texts: _SpecialTexts, renderer: ChatTemplate) -> list[str]:
    writes_bos = bool(texts.bos) and render(renderer, SAMPLES[0].messages, None).startswith(texts.bos)
    if texts.add_bos and not writes_bos:
        return [
            f"the tokenizer adds {texts.bos} before every prompt, although the chat template doesn't write it; if the "
            "model was trained without it, set add_bos_token in tokenizer_config.json to false and convert again"
        ]
    return []


def _trim_notes(renderer: ChatTemplate) -> list[str]:
    text = render(renderer, PADDED.messages, None)
    if all(message["content"] in text for message in PADDED.messages):
        return []
    return ["the chat template trims spaces around messages; Ollama can't, so send messages without them"]


def _dated(jinja: str, texts: _SpecialTexts) -> str:
    """Return a note if the text depends on the date, which no family's template writes; "" otherwise."""
    rendered = set()
    for day in _DATES:
        renderer = ChatTemplate(jinja, bos=texts.bos, eos=texts.eos, clock=partial(datetime.combine, day, time()))
        rendered.add(render(renderer, SAMPLES[0].messages, None))
    return "it writes the current date" if len(rendered) > 1 else ""


def _checked_guard(jinja: str, texts: _SpecialTexts, renderer: ChatTemplate) -> str:
    """Return the guarded template; raise EngineError if it renders another text than before."""
    own = guarded(jinja)
    again = ChatTemplate(own, bos=texts.bos, eos=texts.eos)
    for sample in SAMPLES:
        if render(again, sample.messages, sample.think) != render(renderer, sample.messages, sample.think):
            raise EngineError(
                "a comment before the chat template changes what it renders; write a Modelfile with a TEMPLATE by hand"
            )
    return own
