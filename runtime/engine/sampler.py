"""llama.cpp's samplers: they choose a token by a row of logits, within a grammar if there is one."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.backend import fresh_log
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.engine.sampling import MAX_SEED, PENALTY_TOKENS, Sampling
from tritgguf.runtime.engine.vocab import Vocab

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # struct llama_token_data


class Grammar:
    """The tokens that may come next by a grammar in llama.cpp's notation (GBNF), whose first rule is `root`."""

    def __init__(self, vocab: Vocab, source: str) -> None:
        if "\0" in source:
            raise EngineError("the grammar has a NUL character")
        log = fresh_log()
        self.handle = native.llama_sampler_init_grammar(vocab.handle, source.encode("utf-8", "replace"), b"root")
        if not self.handle:
            raise EngineError(f"the grammar isn't valid for llama.cpp ({log.reason()})")

    def allows(self, token: int) -> bool:
        candidates = np.array([(token, 0.0, 0.0)], _TOKEN_DATA)
        self.restrict(_token_array(candidates))
        return bool(np.isfinite(candidates["logit"][0]))

    def restrict(self, candidates: ctypes.Structure) -> None:
        """Set the logits of all tokens that may not come next to -inf."""
        native.llama_sampler_apply(self.handle, ctypes.byref(candidates))

    def accept(self, token: int) -> None:
        """Go on behind `token`, which must be allowed: llama.cpp ends the process otherwise."""
        native.llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        if self.handle:
            native.llama_sampler_free(self.handle)
            self.handle = None


class Sampler:
    """llama.cpp's chain of samplers for one generation; it owns `grammar`.

    `logit_bias` is added to the logits of single tokens.
    """

    def __init__(
        self,
        vocab: Vocab,
        sampling: Sampling,
        *,
        grammar: Grammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        self._grammar = grammar
        self.handle = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        stages = []
        if logit_bias:
            pairs = [native.llama_logit_bias(token=token, bias=bias) for token, bias in logit_bias.items()]
            biases = (native.llama_logit_bias * len(pairs))(*pairs)
            stages.append(native.llama_sampler_init_logit_bias(vocab.n_tokens, len(logit_bias), biases))
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if penalties != (1.0, 0.0, 0.0):
            stages.append(native.llama_sampler_init_penalties(vocab.n_tokens, PENALTY_TOKENS, *penalties))
        if sampling.temperature == 0.0:
            stages.append(native.llama_sampler_init_greedy())
        else:
            seed = random.randint(0, MAX_SEED) if sampling.seed is None else sampling.seed
            stages += [
                native.llama_sampler_init_top_k(sampling.top_k),
                native.llama_sampler_init_top_p(sampling.top_p, 1),
                native.llama_sampler_init_min_p(sampling.min_p, 1),
                native.llama_sampler_init_temp(sampling.temperature),
                native.llama_sampler_init_dist(seed),
            ]
        for stage in stages:
            native.llama_sampler_chain_add(self.handle, stage)

    def accept(self, token: int) -> None:
        """Count a token that is in the text already, for the penalties."""
        native.llama_sampler_accept(self.handle, token)

    def sample(self, context: Context, output: int = -1) -> int:
        """Choose a token by the logits of the last decoded token, or of another of the batch that wanted logits."""
        logits = context.logits(output)  # raises on NaN, which the samplers would accept
        if self._grammar is None:
            token: int = native.llama_sampler_sample(self.handle, context.handle, context.output_rows[output])
            return token
        # As llama.cpp's programs do it: few tokens are refused, and looking at one costs less than at all of them.
        candidates = np.empty(len(logits), _TOKEN_DATA)
        token = self._choose(candidates, logits, None)
        if not self._grammar.allows(token):
            token = self._choose(candidates, logits, self._grammar)
        self._grammar.accept(token)
        native.llama_sampler_accept(self.handle, token)
        return token

    def _choose(self, candidates: NDArray[np.void], logits: NDArray[np.float32], grammar: Grammar | None) -> int:
        candidates["id"], candidates["logit"], candidates["p"] = np.arange(len(logits)), logits, 0.0
        array = _token_array(candidates)
        if grammar is not None:
            grammar.restrict(array)
            if not np.isfinite(candidates["logit"].max()):
                raise EngineError("the grammar asks for characters that no token of this model's vocabulary has")
        native.llama_sampler_apply(self.handle, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        if self._grammar:
            self._grammar.close()
        if self.handle:
            native.llama_sampler_free(self.handle)
            self.handle = None


def _token_array(candidates: NDArray[np.void]) -> Any:  # noqa: ANN401
    data = candidates.ctypes.data_as(native.llama_token_data_p)
    return native.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
