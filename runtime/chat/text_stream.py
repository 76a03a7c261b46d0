"""Bytes of tokens, as they come, to text that may be shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns token bytes into text: holds back unfinished UTF-8 characters and what may become a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self.drop_first_space = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that is certain now; after a stop string was found, `stopped` is set and nothing more comes."""
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
        certain = len(text) - n_held
        self._held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """What was held back as a possible stop string; an unfinished character is dropped."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
