"""From the bytes of tokens to text, as the tokens are generated."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes token bytes to text, and ends the text at a stop string.

    It holds back an incomplete UTF-8 character, and text that may be the beginning of a stop string. With
    `drop_first_space`, a space at the start of the text is left out.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self.drop_first_space = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Return the text that can be shown now; at a stop string, set `stopped` and return "" from then on."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        if text and self.drop_first_space:
            self.drop_first_space = False
            text = text.removeprefix(" ")
        found = [start for start in (text.find(stop) for stop in self._stop) if start >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        n_shown = len(text) - n_held
        self._held = text[n_shown:]
        return text[:n_shown]

    def end(self) -> str:
        """Return the text that was held back as a possible stop string; drop an incomplete character."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
