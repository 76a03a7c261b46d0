"""A model file that predicts a text's tokens, chunk by chunk, as llama-perplexity has it do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context, Observer
from tritgguf.runtime.engine.placement import Placement
from tritgguf.runtime.measure.base_logits import Floats
from tritgguf.runtime.measure.chunks import first_scored

BATCH_TOKENS = 512  # llama.cpp's own
# Rows of logits that are computed at once, which bounds the memory: 300 MB for a vocabulary of 150,000 tokens.
MAX_ROWS = 256


class Network:
    """An open model with an empty context of `n_ctx` tokens; a context manager.

    `observer` sees every node of the graph. `writable` loads weights into memory that may be written to.
    """

    def __init__(
        self,
        path: Path,
        n_ctx: int,
        *,
        n_threads: int,
        placement: Placement,
        observer: Observer | None = None,
        writable: bool = False,
    ) -> None:
        self.path, self.n_ctx = path, n_ctx
        self.model = Model(path, placement=placement, cache_tokens=n_ctx, writable=writable)
        try:
            if n_ctx > self.model.n_ctx_train:
                raise EngineError(
                    f"{path}: was trained for a context of {self.model.n_ctx_train} tokens, chunks have {n_ctx}; "
                    f"give --ctx {self.model.n_ctx_train} or less"
                )
            self._context = Context(
                self.model,
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_batch=BATCH_TOKENS,
                n_outputs=MAX_ROWS,
                observer=observer,
            )
        except BaseException:
            self.model.close()
            raise

    @property
    def n_vocab(self) -> int:
        return self.model.vocab.n_tokens

    def predictions(self, chunk: NDArray[np.int32]) -> Iterator[tuple[int, Floats]]:
        """Yield the logits of a chunk's scored positions as blocks (first scored position's number, rows).

        A block is overwritten when the next one is asked for. The first token is evaluated as BOS where the vocabulary
        wants one.
        """
        ids = self._with_bos(chunk)
        first, start = first_scored(len(ids)), 0
        self._context.keep(0)
        while start < len(ids):
            end = min(start + BATCH_TOKENS, len(ids), max(start, first) + MAX_ROWS)
            n_rows = end - max(start, first)
            self._context.decode(ids[start:end], start, n_logits=max(n_rows, 1))
            if n_rows > 0:
                # The last position's next token is in no chunk.
                yield max(start, first) - first, self._context.logits()[: n_rows - (end == len(ids))]
            start = end

    def evaluate(self, chunk: NDArray[np.int32]) -> None:
        """Evaluate all tokens of a chunk, the first as BOS where the vocabulary wants one.

        The logits of all are asked for, since the last layer leaves out tokens whose logits aren't.
        """
        ids = self._with_bos(chunk)
        self._context.keep(0)
        for start in range(0, len(ids), MAX_ROWS):
            some = ids[start : start + MAX_ROWS]
            self._context.decode(some, start, n_logits=len(some))
        self._context.wait()

    def _with_bos(self, chunk: NDArray[np.int32]) -> list[int]:
        vocab = self.model.vocab
        ids: list[int] = chunk.tolist()
        if vocab.add_bos and vocab.bos is not None:
            ids[0] = vocab.bos
        return ids

    def close(self) -> None:
        self._context.close()
        self.model.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
