"""Control characters in texts of models, documents and file names: shown as escapes, so that they control nothing."""

from __future__ import annotations

import re

# C0 but for tab and line end, DEL, C1, and the characters that turn the direction of writing for the text after them.
CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"\r(?=\n)|[{CONTROLS}]")


def printable(text: str) -> str:
    """Return `text` with escapes such as \\x1b in place of control characters other than tab and line end."""
    return _CONTROL.sub(shown, text)


def shown(match: re.Match[str]) -> str:
    """Return the escape of the control character that a pattern has found; nothing of a line end of Windows."""
    code = ord(match[0])
    if code == 0x0D and match.string[match.end() : match.end() + 1] == "\n":
        return ""
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
