"""What Ollama 0.30 and newer render of a file's own jinja, and how to make that what the model's authors meant.

They run llama.cpp's server. It gives every template today's date in two variables and always sets enable_thinking
(common_chat_extra_context in https://github.com/ggml-org/llama.cpp/blob/master/common/chat.cpp). transformers does
neither. Llama 3.1's template, for one, has a date of its own for where none is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial

from tritgguf.converter.ollama.samples import SAMPLES, Message
from tritgguf.converter.ollama.selection import THINKING, jinja_offers
from tritgguf.runtime.chat.chat_template import ChatTemplate

_DATES = {"date_string": "%d %b %Y", "datetime": "%b %d %Y"}
# A variable set to one that isn't defined is undefined itself, in jinja2 and in llama.cpp. The newline isn't rendered.
UNSET = "".join(f"{{% set {name} = never_defined %}}" for name in _DATES) + "\n"


def as_meant(jinja: str, *, bos: str, eos: str) -> str | None:
    """Return the template if Ollama renders it as transformers does, or else a changed one of which that is true.

    None if there is no such template. Raises EngineError if the template fails.
    """
    now = datetime.now()
    new = partial(ChatTemplate, bos=bos, eos=eos, clock=lambda: now)
    dates = {name: now.strftime(form) for name, form in _DATES.items()}
    meant = list(_texts(new(jinja), jinja, set_thinking=False))
    for candidate in (jinja, UNSET + jinja):
        if list(_texts(new(candidate, variables=dates), jinja, set_thinking=True)) == meant:
            return candidate
    return None


def _texts(renderer: ChatTemplate, jinja: str, *, set_thinking: bool) -> Iterator[str]:
    """Yield the texts of the samples that Ollama accepts; where it can, it turns thinking on unless it is off."""
    thinks = THINKING in jinja_offers(jinja)
    for sample in SAMPLES:
        if sample.think is None:
            yield render(renderer, sample.messages, True if thinks or set_thinking else None)
        elif thinks or not sample.think:
            yield render(renderer, sample.messages, sample.think)


def render(renderer: ChatTemplate, messages: Sequence[Message], think: bool | None) -> str:
    """Return what transformers would render; it calls an answer's thoughts "reasoning_content"."""
    named = [{("reasoning_content" if key == "thinking" else key): text for key, text in m.items()} for m in messages]
    return renderer.render(named, think=think)
