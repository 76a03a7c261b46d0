"""One generation: evaluate the tokens, sample the next one, yield its text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tritgguf.runtime.chat.text_stream import TextStream
from tritgguf.runtime.engine.evaluator import Evaluator
from tritgguf.runtime.engine.sampler import Grammar, Sampler
from tritgguf.runtime.engine.sampling import PENALTY_TOKENS, Sampling

Finish = Literal["end", "stop", "max_tokens", "context", "interrupted"]


@dataclass(frozen=True)
class Stats:
    """Token counts and times of one generation; `n_cached` tokens of the prompt were in the KV cache already."""

    n_prompt: int = 0
    n_cached: int = 0
    prompt_seconds: float = 0.0
    n_generated: int = 0
    n_evaluated: int = 0  # generated tokens that were fed back to the model: all but the last one
    generation_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens evaluated per second."""
        return (self.n_prompt - self.n_cached) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_rate(self) -> float:
        """Tokens generated per second."""
        return self.n_evaluated / self.generation_seconds if self.generation_seconds else 0.0


class Generation(Iterator[str]):
    """Yields pieces of text as they are generated.

    `finish` is the reason for the end; it is "interrupted" until the generation has ended. `stats` counts up to now.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        prompt: list[int],
        sampling: Sampling,
        limit: int | None,
        stream: TextStream,
        grammar: str | None = None,
    ) -> None:
        self.finish: Finish = "interrupted"
        self.stats = Stats(n_prompt=len(prompt))
        self._stream = stream
        self._grammar = grammar
        self._pieces = self._run(evaluator, prompt, sampling, limit)

    def __next__(self) -> str:
        return next(self._pieces)

    def drop_first_space(self) -> None:
        """Leave out a space at the start of the text: SentencePiece puts one before the first word."""
        self._stream.drop_first_space = True

    def close(self) -> None:
        """Stop generating; a second call does nothing."""
        self._pieces.close()

    def _run(
        self, evaluator: Evaluator, prompt: list[int], sampling: Sampling, limit: int | None
    ) -> Generator[str, None, None]:
        tokens, vocab, stream = list(prompt), evaluator.model.vocab, self._stream
        grammar = None if self._grammar is None else Grammar(vocab, self._grammar)
        sampler = Sampler(vocab, sampling, grammar=grammar)
        try:
            for token in tokens[-PENALTY_TOKENS:]:
                if not vocab.is_control(token):  # a penalty on the end of turn would keep answers from ending
                    sampler.accept(token)
            while not stream.stopped and self._advance(evaluator, tokens, sampler, limit):
                piece = stream.feed(vocab.piece(tokens[-1]))
                if piece:
                    yield piece
            if stream.stopped:
                self.finish = "stop"
            if rest := stream.end():
                yield rest
        finally:
            sampler.close()

    def _advance(self, evaluator: Evaluator, tokens: list[int], sampler: Sampler, limit: int | None) -> bool:
        """Append the next token to `tokens`; return False and set `finish` if the generation has ended."""
        if self.stats.n_generated == limit or len(tokens) == evaluator.n_ctx:
            self.finish = "max_tokens" if self.stats.n_generated == limit else "context"
            return False
        start = time.perf_counter()
        n_cached = evaluator.evaluate(tokens)
        token = sampler.sample(evaluator.context)
        seconds = time.perf_counter() - start
        stats = self.stats
        if stats.n_prompt == len(tokens):
            stats = replace(stats, n_cached=n_cached, prompt_seconds=seconds)
        else:
            stats = replace(
                stats, n_evaluated=stats.n_evaluated + 1, generation_seconds=stats.generation_seconds + seconds
            )
        if evaluator.model.vocab.is_end(token):
            self.stats, self.finish = stats, "end"
            return False
        self.stats = replace(stats, n_generated=stats.n_generated + 1)
        tokens.append(token)
        return True
