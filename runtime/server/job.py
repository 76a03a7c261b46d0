"""One request to a model, as the thread that decodes sees it: its tokens so far, and the events that tell of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.generation import Finish, Stats
from tritgguf.runtime.chat.text_stream import TextStream
from tritgguf.runtime.engine.sampler import Sampler
from tritgguf.runtime.engine.sampling import PENALTY_TOKENS
from tritgguf.runtime.engine.vocab import Vocab


@dataclass(frozen=True)
class Likely:
    """A token and the natural logarithm of the probability that the model gives it."""

    piece: bytes
    logprob: float


@dataclass(frozen=True)
class Chosen(Likely):
    """The token that was sampled, and the `top` most probable ones in its place."""

    top: tuple[Likely, ...]


@dataclass(frozen=True)
class Piece:
    """Some more text, and the tokens that were generated since the last piece if their probabilities were asked for."""

    text: str
    tokens: tuple[Chosen, ...] = ()


@dataclass(frozen=True)
class Done:
    """The generation has ended."""

    finish: Finish
    stats: Stats


@dataclass(frozen=True)
class Failure:
    """The generation can't go on; `error` is for the client."""

    error: TritggufError


Event: TypeAlias = Piece | Done | Failure


class Job:
    """A prompt and how to continue it. All but cancel() belongs to the decoding thread once it is submitted.

    `n_top` asks for the probabilities of each token and of so many others; `sink` takes the events, on that thread.
    `deadline` is a time by time.monotonic(). Where `keep` is a number, a full context doesn't end the generation, but
    loses what comes behind so many tokens.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        stream: TextStream,
        *,
        limit: float | None,
        keep: int | None = None,
        n_top: int | None,
        deadline: float,
        sink: Callable[[Event], None],
    ) -> None:
        self.tokens = list(prompt)
        self.sampler = sampler
        self.limit = limit
        self.keep = keep
        self.deadline = deadline
        self.cancelled = False
        self.stats = Stats(n_prompt=len(self.tokens))
        self._stream = stream
        self._n_top = n_top
        self._sink = sink
        self._waiting: list[Chosen] = []
        self._started = 0.0

    def cancel(self) -> None:
        """Ask for the end; from any thread. Nobody reads further events."""
        self.cancelled = True

    def start(self, vocab: Vocab, n_cached: int) -> None:
        """A slot has been found, whose cache holds `n_cached` tokens of the prompt."""
        self._started = time.perf_counter()
        self.stats = replace(self.stats, n_cached=n_cached)
        for token in self.tokens[-PENALTY_TOKENS:]:
            if not vocab.is_control(token):  # as in chat.generation
                self.sampler.accept(token)

    @property
    def wants_logits(self) -> bool:
        """Whether take() needs the logits that a token was chosen by."""
        return self._n_top is not None

    def take(self, vocab: Vocab, token: int, logits: NDArray[np.float32] | None) -> Finish | None:
        """Take the next token; return why the generation ends, None if it goes on."""
        self._count_time()
        if vocab.is_end(token):
            return "end"
        self.tokens.append(token)
        self.stats = replace(self.stats, n_generated=self.stats.n_generated + 1)
        piece = vocab.piece(token)
        if self._n_top is not None and logits is not None:
            self._waiting.append(_chosen(vocab, token, logits, self._n_top))
        text = self._stream.feed(piece)
        if text:
            self._send_piece(text)
        if self._stream.stopped:
            return "stop"
        return "max_tokens" if self.stats.n_generated == self.limit else None

    def finish(self, reason: Finish) -> None:
        """Send what is left and the end."""
        rest = self._stream.end()
        if rest or self._waiting:
            self._send_piece(rest)
        self._sink(Done(reason, self.stats))
        self.sampler.close()

    def fail(self, error: TritggufError) -> None:
        self._sink(Failure(error))
        self.sampler.close()

    def _send_piece(self, text: str) -> None:
        self._sink(Piece(text, tuple(self._waiting)))
        self._waiting.clear()

    def _count_time(self) -> None:
        seconds = time.perf_counter() - self._started
        stats = self.stats
        if stats.prompt_seconds == 0.0:
            self.stats = replace(stats, prompt_seconds=seconds)
        else:
            self.stats = replace(
                stats, n_evaluated=stats.n_evaluated + 1, generation_seconds=seconds - stats.prompt_seconds
            )


def _chosen(vocab: Vocab, token: int, logits: NDArray[np.float32], n_top: int) -> Chosen:
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argpartition(-logprobs, n_top)[:n_top] if n_top else np.empty(0, np.int64)
    best = best[np.argsort(-logprobs[best], kind="stable")]

    def likely(index: int) -> Likely:
        return Likely(vocab.piece(index, special=True), float(logprobs[index]))

    return Chosen(vocab.piece(token), float(logprobs[token]), tuple(likely(int(index)) for index in best))
