"""Compute an importance matrix of a model on a text, by the protocol of llama.cpp's llama-imatrix.

https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix describes it: the text becomes tokens, texts of special
tokens stay text, they are cut into chunks of 512, and each chunk is evaluated in an empty context.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.imatrix import Entry, Imatrix
from tritgguf.runtime.engine.activations import Activations
from tritgguf.runtime.engine.context import new_activations
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.placement import ANYWHERE, Placement
from tritgguf.runtime.measure.chunks import DEFAULT_N_CTX, cut, read_text
from tritgguf.runtime.measure.network import Network


def compute_imatrix(
    model: Path,
    text: Path,
    out: Path,
    *,
    n_ctx: int | None = None,
    n_chunks: int | None = None,
    threads: int | None = None,
    placement: Placement = ANYWHERE,
    progress: Progress | None = None,
) -> Imatrix:
    """Return the importance matrix of a GGUF file on a text file, under the name `out`; nothing is written.

    `n_ctx` are the tokens of a chunk (512), `n_chunks` how many chunks at most, `threads` one per core, and `placement`
    where. `progress` is called with "evaluating", the tokens done and their total. EngineError where
    the model can't be evaluated, or the text is no UTF-8, too short, or the one that `eval` takes by default.
    """
    words, n_ctx = read_text(text), n_ctx or DEFAULT_N_CTX
    if words == read_text(None):
        raise EngineError(
            f"{text}: is the text that `tritgguf eval` measures on: figures of a model that was fitted to it would be "
            "too good; take another text"
        )
    activations = new_activations()
    n_threads = threads or default_threads()
    with Network(model, n_ctx, n_threads=n_threads, placement=placement, observer=activations) as network:
        chunks = cut(words, network.model.vocab, n_ctx, (str(text), str(model))).first(n_chunks)
        step = counted(progress, "evaluating", chunks.ids.size)
        for chunk in chunks.ids:
            network.evaluate(chunk)
            activations.check()
            step(n_ctx)
    return Imatrix(out, _entries(activations), (text.name,), len(chunks), n_ctx)


def _entries(activations: Activations) -> dict[str, Entry]:
    """Return what was collected; a layer of which several matrices share one count is one row of them."""
    return {
        name: Entry(sums.astype(np.float32).reshape(len(counts), -1), counts.astype(np.float32))
        for name, sums in activations.sums.items()
        for counts in [activations.counts[name]]
    }
