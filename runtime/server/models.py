"""The models that a server has: opened before it listens, named as clients ask for them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io import parts
from tritgguf.runtime.chat.prompts import Prompts
from tritgguf.runtime.chat.recommended_sampling import complete_sampling
from tritgguf.runtime.chat.session import BATCH_TOKENS, DEFAULT_N_CTX, context_tokens
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import MAX_OUTPUT_ROWS, Context
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.placement import ANYWHERE, Placement
from tritgguf.runtime.server.batcher import Batcher
from tritgguf.runtime.server.errors import RequestError

Floats64: TypeAlias = NDArray[np.float64]
EMBEDDED_AT_ONCE = MAX_OUTPUT_ROWS  # tokens of a text: what others generate waits meanwhile


@dataclass(frozen=True)
class Capacity:
    """What each model gets: `n_ctx` tokens for each of `n_slots` conversations; None is the default of `chat`."""

    n_slots: int = 4
    n_ctx: int | None = None
    n_threads: int | None = None
    placement: Placement = ANYWHERE

    @property
    def cache_tokens(self) -> int:
        """Of all conversations of a model, where it can have that many."""
        return self.n_slots * (self.n_ctx or DEFAULT_N_CTX)


class ServedModel:
    """An open model with its slots."""

    def __init__(self, name: str, path: Path, model: Model, context: Context, n_ctx: int) -> None:
        self.name = name
        self.path = path
        self.model = model
        self.n_ctx = n_ctx
        self.n_slots = context.n_sequences
        self.batcher = Batcher(model, context, n_ctx)
        self.prompts = Prompts(model)
        self.settings: dict[str, Any] = complete_sampling(model, {})
        self._n_threads = context.n_threads
        self._embedder: Context | None = None
        self.embedder_lock = asyncio.Lock()  # of a text whose parts are in the embedder's context
        stats = [part.stat() for part in _parts(model)]  # now: files may be gone when somebody asks, and still serve
        self.file_bytes = sum(stat.st_size for stat in stats)
        newest = max(stat.st_mtime_ns for stat in stats)
        self.modified = datetime.fromtimestamp(newest / 1e9, timezone.utc)
        # A name for the file's version: of its size, time and name, since reading it all takes long.
        self.digest = hashlib.sha256(f"{name} {self.file_bytes} {newest}".encode()).hexdigest()
        if model.chat_template is not None:
            _ = self.prompts.template  # EngineError now, not at the first request

    def hidden_states(self, tokens: Sequence[int], start: int) -> Floats64:
        """Return the final hidden states of up to EMBEDDED_AT_ONCE tokens of a text, from `start`: (tokens, n_embd).

        On the decoding thread only, and for the parts of one text after the other: those before are in its context.
        """
        if self._embedder is None:
            size = (self.n_ctx, self._n_threads, EMBEDDED_AT_ONCE)
            self._embedder = Context(self.model, n_ctx=size[0], n_threads=size[1], n_batch=size[2], embeddings=True)
        if start == 0:
            self._embedder.keep(0)
        self._embedder.decode(tokens, start, n_logits=len(tokens))
        return self._embedder.embeddings().astype(np.float64)

    def embedding(self, states: Floats64) -> list[float]:
        """Return a text's embedding, of length 1, by the final hidden states of its tokens, (tokens, n_embd).

        Their mean, or the last one where the file says so (pooling_type).
        """
        architecture = self.model.header.values["general.architecture"]
        takes_last = self.model.header.value(f"{architecture}.pooling_type") == 3  # LLAMA_POOLING_TYPE_LAST
        vector = states[-1] if takes_last else states.mean(axis=0)
        norm = float(np.linalg.norm(vector))
        return [float(number) for number in (vector / norm if norm else vector)]

    def close(self) -> None:
        if self._embedder:
            self._embedder.close()


def _parts(model: Model) -> list[Path]:
    """Return a model's file, or all files of a split one."""
    n_parts = int(model.header.values.get(parts.COUNT, 1))
    return (n_parts > 1 and parts.sibling_paths(model.path, n_parts)) or [model.path]


class Models:
    """The served models by name."""

    def __init__(self, served: Sequence[ServedModel]) -> None:
        self.all = list(served)
        self._by_name = {model.name: model for model in served}

    def find(self, name: str) -> ServedModel:
        """Return the model that a request names, also as Ollama does with `:latest`; RequestError if there is none."""
        found = self._by_name.get(name) or self._by_name.get(name.removesuffix(":latest"))
        if found is None:
            there = ", ".join(sorted(self._by_name))
            raise RequestError(
                f"model {name!r} not found; this server has {there}", status=404, param="model", code="model_not_found"
            )
        return found


@contextmanager
def open_models(files: Sequence[tuple[str, Path]], capacity: Capacity) -> Iterator[Models]:
    """Load files, given with their names; EngineError if one can't be loaded or two have the same name."""
    names = [name for name, _ in files]
    for index, (name, path) in enumerate(files):
        if name in names[:index]:
            raise EngineError(
                f"{path}: another model is called {name} too, and requests name models so: "
                "rename a file, or leave one out"
            )
    with ExitStack() as stack:
        served = [_open(stack, name, path, capacity) for name, path in files]
        yield Models(served)


def _open(stack: ExitStack, name: str, path: Path, capacity: Capacity) -> ServedModel:
    model = Model(os.fspath(path), placement=capacity.placement, cache_tokens=capacity.cache_tokens)
    stack.enter_context(model)
    n_ctx = context_tokens(model, capacity.n_ctx)
    context = Context(
        model,
        n_ctx=n_ctx,
        n_threads=capacity.n_threads or default_threads(),
        n_batch=BATCH_TOKENS,
        n_sequences=capacity.n_slots,
    )
    stack.callback(context.close)
    served = ServedModel(name, path, model, context, n_ctx)
    stack.callback(served.close)
    return served
