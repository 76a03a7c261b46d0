"""The messages that docs/troubleshooting.md quotes are those that the sources have."""

from __future__ import annotations

import bisect
import re

import pytest

from tests.docs.messages import messages
from tests.paths import DOCS

SHORTEST = 6  # letters of a message that tell something
MOST = 4  # texts that a message is composed of
QUOTED = re.findall(
    r"^```text\n(.*?)\n```$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


def test_each_quotes_one_line() -> None:
    assert len(QUOTED) == len(set(QUOTED)) > 20
    assert [line for line in QUOTED if not re.fullmatch("(error|note): .+", line)] == []


@pytest.mark.parametrize("line", QUOTED)
def test_message(line: str) -> None:
    """What stands between two "…" is in a text of the sources or, since messages are composed, made of some."""
    for piece in re.sub("^(error|note): ", "", line).split("…"):
        if piece.strip(" ();:,."):
            assert len(parts := pieces(piece)) <= MOST, f"{piece!r} isn't in the sources, only {parts}"


def pieces(text: str) -> list[str]:
    """Return texts of the sources, or long parts of such, that make the text when joined; nothing else may be in it."""
    whole, found = messages(), []
    everything = "\0".join(whole)
    while text:
        n = bisect.bisect_left(range(1, len(text) + 1), True, key=lambda n: text[:n] not in everything)
        part = text[:n]
        assert n >= SHORTEST or part in whole, f"{text!r} isn't in the sources; before it come {found}"
        found.append(part)
        text = text[n:]
    return found
