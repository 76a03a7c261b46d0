"""Keep llama.cpp's log off the terminal and its last errors for error messages."""

from __future__ import annotations

import sys
from collections import deque

_ERROR, _CONTINUED = 4, 5  # enum ggml_log_level of the pinned llama.cpp
_LOADING = "error loading model: "


class NativeLog:
    """Receives the native log; with `to_stderr` it is printed too."""

    def __init__(self) -> None:
        self.to_stderr = False
        self._errors: deque[str] = deque(maxlen=50)
        self._level = 0

    def write(self, level: int, text: bytes | None) -> None:
        """Take one log event; the level "continued" means that of the event before."""
        self._level = self._level if level == _CONTINUED else level
        line = (text or b"").decode("utf-8", "replace")
        if self.to_stderr:
            sys.stderr.write(line)
        if self._level == _ERROR and line.strip():
            self._errors.append(" ".join(line.split()))

    def clear(self) -> None:
        self._errors.clear()

    def reason(self) -> str:
        """Return why loading failed since clear(), else the first error, without the C function's name."""
        for line in self._errors:
            if _LOADING in line and "failed to load model from" not in line:
                return line.split(_LOADING, 1)[1]
        if self._errors:
            return self._errors[0].split(": ", 1)[-1]
        return "it gives no reason"
