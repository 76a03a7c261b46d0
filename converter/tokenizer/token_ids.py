"""Who computes a written file's token ids: not the converter, but a provider that its caller hands in.

A provider is a callable that starts what reads GGUF vocabularies. Packages offer one under the entry point group
`tritgguf.token_ids`; the first is used where a caller names none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, cast

from tritgguf.converter.errors import TokenizerError

GROUP = "tritgguf.token_ids"


class TokenIds(NamedTuple):
    """Ids of each text, as a prompt, under a GGUF file's tokenizer and the source's; None where that wasn't loaded."""

    found: list[list[int]]
    expected: list[list[int]] | None


ReadTokenIds: TypeAlias = Callable[[Path, Sequence[str]], TokenIds]
"""Return the ids of texts under the vocabulary of a GGUF file: special tokens parsed, bos and eos added by its keys.

The file's tensor data need not be written yet. Raises TokenizerError where the vocabulary can't be read. It is called
once per start.
"""


class TokenIdsProvider(Protocol):
    """Starts a reader of token ids; leaving the context ends it."""

    def __call__(self, folder: Path | None, /) -> AbstractContextManager[ReadTokenIds]:
        """Start early, before the file exists; `folder` has a tokenizer.json to compute the expected ids with."""


def installed_provider() -> TokenIdsProvider:
    """Return the provider that an installed package offers; raise TokenizerError where none does."""
    for entry_point in entry_points(group=GROUP):
        return cast("TokenIdsProvider", entry_point.load())
    raise TokenizerError(
        f"token ids can't be compared: no installed package has an entry point in the group {GROUP}; install tritgguf "
        "again, or leave the comparison out (--no-check)"
    )
