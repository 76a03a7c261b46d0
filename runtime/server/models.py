"""The models that a server has: opened before it listens, named as clients ask for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.prompts import Prompts
from tritgguf.runtime.chat.recommended_sampling import complete_sampling
from tritgguf.runtime.chat.session import BATCH_TOKENS, context_tokens
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import MAX_OUTPUT_ROWS, Context
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.placement import ANYWHERE, Placement
from tritgguf.runtime.server.batcher import Batcher
from tritgguf.runtime.server.errors import RequestError


@dataclass(frozen=True)
class Capacity:
    """What each model gets: `n_ctx` tokens for each of `n_slots` conversations; None is the default of `chat`."""

    n_slots: int = 4
    n_ctx: int | None = None
    n_threads: int | None = None
    placement: Placement = ANYWHERE


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
        stat = path.stat()  # now: the file may be gone when somebody asks, and still serves
        self.file_bytes = stat.st_size
        self.modified = datetime.fromtimestamp(stat.st_mtime, timezone.utc)
        # A name for the file's version: of its size, time and name, since reading it all takes long.
        self.digest = hashlib.sha256(f"{name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
        if model.chat_template is not None:
            _ = self.prompts.template  # EngineError now, not at the first request

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """Return the text's embedding, of length 1: on the decoding thread only.

        The mean of the tokens' final hidden states, or the last one where the file says so (pooling_type).
        """
        if self._embedder is None:
            size = (self.n_ctx, self._n_threads, MAX_OUTPUT_ROWS)
            self._embedder = Context(self.model, n_ctx=size[0], n_threads=size[1], n_batch=size[2], embeddings=True)
        context, rows = self._embedder, []
        context.keep(0)
        for start in range(0, len(tokens), context.n_batch):
            part = tokens[start : start + context.n_batch]
            context.decode(part, start, n_logits=len(part))
            rows.append(context.embeddings().astype(np.float64))
        states = np.concatenate(rows)
        architecture = self.model.header.values["general.architecture"]
        takes_last = self.model.header.value(f"{architecture}.pooling_type") == 3  # LLAMA_POOLING_TYPE_LAST
        vector = states[-1] if takes_last else states.mean(axis=0)
        norm = float(np.linalg.norm(vector))
        return [float(number) for number in (vector / norm if norm else vector)]

    def close(self) -> None:
        if self._embedder:
            self._embedder.close()


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
    model = stack.enter_context(Model(os.fspath(path), placement=capacity.placement))
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
