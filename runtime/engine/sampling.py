"""Settings for sampling the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from tritgguf.converter.errors import EngineError

PENALTY_TOKENS = 64  # the repeat penalty applies to this many tokens before the next one
MAX_SEED = 2**32 - 2  # 2**32 - 1 is LLAMA_DEFAULT_SEED, which means "random" to llama.cpp


class Settings(TypedDict, total=False):
    """Settings of a generation, for `**settings`: the fields of Sampling, and when to end."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    grammar: str | None
    json_schema: object


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; EngineError if one is out of range. The defaults are llama.cpp's, except for the temperature.

    `temperature` 0 always takes the most probable token. `top_k` 0, `top_p` 1, `min_p` 0 and `repeat_penalty` 1 turn a
    filter off. Penalties apply to the last 64 tokens, including the prompt's; `frequency_penalty` for each time that a
    token is among them, `presence_penalty` once. The same `seed` gives the same text; None means a random seed.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("top_k", self.top_k, 0, 2**31 - 1)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _check("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _check("presence_penalty", self.presence_penalty, -100.0, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, MAX_SEED)


def _check(name: str, number: float, low: float, high: float) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise EngineError(f"{name} is {number!r}, expected a number from {low} to {high}")
    if isinstance(low, int) and not isinstance(number, int):
        raise EngineError(f"{name} is {number!r}, expected a whole number from {low} to {high}")
    if not low <= number <= high:
        raise EngineError(f"{name} is {number}, expected {low} to {high}")
