"""An open model file: token ids, logits, and generation that reuses the evaluated part of the prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.chat_template import ChatTemplate, Message
from tritgguf.runtime.chat.generation import Generation, Stats
from tritgguf.runtime.chat.json_schema import grammar_of_schema
from tritgguf.runtime.chat.prompts import Prompts
from tritgguf.runtime.chat.text_stream import TextStream
from tritgguf.runtime.engine.backend import Model, cpu_kernels
from tritgguf.runtime.engine.context import MAX_OUTPUT_ROWS, Context
from tritgguf.runtime.engine.evaluator import Evaluator
from tritgguf.runtime.engine.gpu_memory import CACHE_TOKENS
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.kernels.install import CpuKernels
from tritgguf.runtime.engine.placement import Placement
from tritgguf.runtime.engine.sampler import Grammar
from tritgguf.runtime.engine.sampling import Sampling, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_N_CTX = CACHE_TOKENS
BATCH_TOKENS = 512


class Session:
    """An open model; `tritgguf.runtime.open` makes it.

    It is a context manager. Only one thread at a time may use it.
    """

    def __init__(self, evaluator: Evaluator, seed: int | None) -> None:
        self._evaluator = evaluator
        self.n_ctx = evaluator.n_ctx
        self.seed = seed
        self._generation: Generation | None = None
        self._prompts = Prompts(evaluator.model)

    @property
    def model(self) -> Model:
        """The loaded file; EngineError after close(), which frees its memory."""
        return self._evaluator.model

    @property
    def context(self) -> Context:
        """The KV cache and the last logits; EngineError after close()."""
        return self._evaluator.context

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.model.vocab.n_tokens

    @property
    def has_chat_template(self) -> bool:
        """Whether the file has a chat template; a base model, which only continues text, has none."""
        return self.model.chat_template is not None

    @property
    def cpu_kernels(self) -> CpuKernels:
        """What multiplies ternary weights on the CPU, and why."""
        return cpu_kernels()

    @property
    def stats(self) -> Stats:
        """Token counts and times of the last generation, up to now."""
        return self._generation.stats if self._generation else Stats()

    def tokenize(self, text: str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """Return the token ids of `text`.

        With `special`, the text of a special token becomes that token. `bos` says whether to put BOS first; None leaves
        that to the file. BOS is never put before another BOS. EngineError if `bos` is True and there is no BOS.
        """
        return self._open_prompts().text_tokens(text, special=special, bos=bos)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `tokens`; control tokens are left out unless `special`, invalid UTF-8 becomes U+FFFD."""
        return self.model.vocab.detokenize(tokens, special=special).decode("utf-8", "replace")

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float = Sampling.temperature,
        top_p: float = Sampling.top_p,
        top_k: int = Sampling.top_k,
        min_p: float = Sampling.min_p,
        repeat_penalty: float = Sampling.repeat_penalty,
        frequency_penalty: float = Sampling.frequency_penalty,
        presence_penalty: float = Sampling.presence_penalty,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        grammar: str | None = None,
        json_schema: object = None,
    ) -> Generation:
        """Continue `prompt`, a text or token ids, which are used unchanged; returns an iterator over pieces of text.

        The generation ends when the model ends it, at a stop string, after `max_tokens` tokens, or when the context is
        full. Stop strings and end-of-generation tokens are left out of the text. With `seed` None the session's seed
        applies. `grammar`, in llama.cpp's notation (GBNF), or `json_schema` say what the text must look like; only
        max_tokens, a stop string and the context end it before. EngineError if a setting is out of range, or the
        prompt is empty or fills the context.
        """
        seed = self.seed if seed is None else seed
        sampling = Sampling(temperature, top_p, top_k, min_p, repeat_penalty, seed, frequency_penalty, presence_penalty)
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise EngineError("a stop string is empty")
        if max_tokens is not None and max_tokens < 1:
            raise EngineError(f"max_tokens is {max_tokens}, expected at least 1")
        if not tokens:
            raise EngineError("the prompt has no tokens, there is nothing to continue")
        self.model.vocab.check(tokens)
        if len(tokens) >= self.n_ctx:
            raise EngineError(
                f"the prompt has {len(tokens)} tokens, the context of {self.n_ctx} has room for {self.n_ctx - 1}: "
                "shorten it or open the model with a larger context"
            )
        if json_schema is not None:
            if grammar is not None:
                raise EngineError("a grammar and a JSON schema are given: give one of them")
            grammar = grammar_of_schema(json_schema)
        if grammar is not None:
            Grammar(self.model.vocab, grammar).close()  # EngineError now, not when the text is asked for
        self._generation = Generation(self._evaluator, tokens, sampling, max_tokens, TextStream(stops), grammar)
        return self._generation

    def chat(
        self, messages: Sequence[Message], *, think: bool | None = None, **settings: Unpack[Settings]
    ) -> Generation:
        """Generate the assistant's answer to `messages`, each {"role": ..., "content": ...}, by the chat template.

        `think` is the template's enable_thinking; None leaves that to the template. `settings` are those of generate().
        EngineError as there, and if the file has no template or it fails.
        """
        generation = self.generate(self.chat_tokens(messages, think=think), **settings)
        if self.model.vocab.is_sentencepiece:
            generation.drop_first_space()
        return generation

    def chat_tokens(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int]:
        """Return the token ids of the rendered conversation, up to where the assistant's answer begins.

        The texts of control tokens become those tokens where the template writes them, not where a message has them.
        """
        return self._open_prompts().chat_tokens(messages, think=think)

    @property
    def template(self) -> ChatTemplate:
        """The file's chat template; EngineError if it has none."""
        return self._open_prompts().template

    def _open_prompts(self) -> Prompts:
        _ = self.model  # EngineError after close()
        return self._prompts

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each of `tokens` (ids, used unchanged), float32 of shape (n_tokens, n_vocab).

        They are for measurements, so attention runs in float32. Generations use llama.cpp's faster half-precision
        attention; their logits may differ by up to 3e-3 of the norm. This uses a separate context, so generations keep
        their KV cache. EngineError if an id isn't in the vocabulary or the tokens don't fit the context.
        """
        ids = [int(token) for token in tokens]
        self.model.vocab.check(ids)
        if len(ids) > self.n_ctx:
            raise EngineError(
                f"{len(ids)} tokens don't fit the context of {self.n_ctx}: open the model with a larger one"
            )
        result = np.empty((len(ids), self.n_vocab), np.float32)
        if not ids:
            return result
        n_threads = self.context.n_threads
        with closing(
            Context(self.model, n_ctx=len(ids), n_threads=n_threads, n_batch=MAX_OUTPUT_ROWS, f32_attention=True)
        ) as context:
            for start in range(0, len(ids), context.n_batch):
                part = ids[start : start + context.n_batch]
                context.decode(part, start, n_logits=len(part))
                result[start : start + context.n_batch] = context.logits()
        return result

    def evaluate(self, tokens: list[int]) -> int:
        """Make the KV cache hold exactly `tokens`; returns how many of them it held already.

        The last token is always evaluated, so that `context` has its logits.
        """
        return self._evaluator.evaluate(tokens)

    def close(self) -> None:
        """Free the model's memory; the session can't be used afterwards."""
        if self._generation:
            self._generation.close()
        self._evaluator.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int | None = None,
    main_gpu: int | None = None,
    tensor_split: Sequence[float] = (),
    rpc: Sequence[str] = (),
    seed: int | None = None,
) -> Session:
    """Load the GGUF file at `path` for generation.

    `n_ctx` is the context size in tokens: by default 4096, or the trained context if that is smaller. It can't exceed
    the trained context, because the model's output beyond that is wrong. `n_threads` is by default the number of
    physical performance cores that this process may use. `n_gpu_layers` is by default as many as fit if llama.cpp finds
    a GPU, all if `rpc` names servers ("host:port") on other machines, else 0. `main_gpu` is the only GPU to use,
    `tensor_split` the shares of the servers' devices and then of the GPUs. BitNet 2B-4T runs on the CPU only. `seed`
    applies to generations that are given none. EngineError if the file can't be loaded, a number is out of range, or
    a server can't be used.
    """
    Sampling(seed=seed)
    if n_threads is not None and not 1 <= n_threads <= 512:
        raise EngineError(f"threads is {n_threads}, expected 1 to 512")
    placement = Placement(n_gpu_layers, main_gpu, tuple(tensor_split), tuple(rpc))
    model = Model(path, placement=placement, cache_tokens=n_ctx)
    try:
        n_ctx = context_tokens(model, n_ctx)
        context = Context(model, n_ctx=n_ctx, n_threads=n_threads or default_threads(), n_batch=BATCH_TOKENS)
        return Session(Evaluator(model, context, n_ctx), seed)
    except BaseException:
        model.close()
        raise


def context_tokens(model: Model, n_ctx: int | None) -> int:
    """Return the context size that is asked for, or the default; EngineError if the model doesn't allow it."""
    if n_ctx is None:
        return min(model.n_ctx_train, DEFAULT_N_CTX)
    if not 2 <= n_ctx <= model.n_ctx_train:
        raise EngineError(
            f"{model.path}: a context of {n_ctx} tokens was requested, the model allows 2 to {model.n_ctx_train}"
        )
    return n_ctx
