"""A text as llama-perplexity cuts it: chunks of n_ctx tokens, of which the second half is scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.vocab import Vocab

DEFAULT_N_CTX = 512
DEFAULT_TEXT = Path(__file__).with_name("default_text.txt")


def first_scored(n_ctx: int) -> int:
    """Return the first position whose prediction is scored: a model needs some context to predict from."""
    return n_ctx // 2


def n_scored(n_ctx: int) -> int:
    """Return how many positions of a chunk are scored: the last one's next token is in no chunk."""
    return n_ctx - 1 - first_scored(n_ctx)


@dataclass(frozen=True)
class Chunks:
    """Token ids, int32 of shape (n_chunks, n_ctx)."""

    ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_ctx(self) -> int:
        return int(self.ids.shape[1])

    def targets(self, chunk: int) -> NDArray[np.int32]:
        """Return the tokens that the scored positions of a chunk are to predict."""
        return self.ids[chunk, first_scored(self.n_ctx) + 1 :]

    def first(self, n_chunks: int | None) -> Chunks:
        """Return the first `n_chunks` chunks; all of them if that is None."""
        return Chunks(self.ids[:n_chunks])


def read_text(path: Path | None) -> str:
    """Return a text file's characters, line ends unchanged; that of the default text if `path` is None.

    One line end at the end of the file is left out, as in llama.cpp's programs. EngineError where it isn't UTF-8.
    """
    path = path or DEFAULT_TEXT
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise EngineError(f"{path}: isn't UTF-8 text (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise EngineError(f"{path}: can't be read ({error.strerror}); give --text another file") from error


def cut(text: str, vocab: Vocab, n_ctx: int, names: tuple[str, str]) -> Chunks:
    """Return the text's chunks; tokens that don't fill a last one are left out.

    Texts of special tokens stay text; BOS goes first where the vocabulary wants it. EngineError where the text is
    shorter than a chunk; `names` are the text's and the model's, for that message.
    """
    ids = vocab.tokenize(text, special=False, add_special=True)
    if len(ids) < n_ctx:
        raise EngineError(
            f"{names[0]}: has {len(ids)} tokens in the vocabulary of {names[1]}, one chunk needs {n_ctx}; give a "
            "longer text or a smaller --ctx"
        )
    n_chunks = len(ids) // n_ctx
    return Chunks(np.array(ids[: n_chunks * n_ctx], np.int32).reshape(n_chunks, n_ctx))
