"""Token ids by the real runtime without a child process, which takes longer to start than a small model to convert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIds


@contextmanager
def token_ids_in_this_process(_folder: Path | None = None) -> Iterator[ReadTokenIds]:
    """What token_ids_process yields; for files that are sure not to end the process that loads them."""
    from tritgguf.runtime.engine.token_ids import token_ids  # not at the top, where tests/conftest.py loads this

    def read(file: Path, texts: Sequence[str]) -> TokenIds:
        return TokenIds(token_ids(file, texts), None)

    yield read
