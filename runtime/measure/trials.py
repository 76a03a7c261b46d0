"""What single tensors' types cost: a model's predictions with one tensor's values replaced in memory.

The model is loaded once, as F16. For each trial one tensor gets the values that a file would have in another type; the
KL divergence of the predictions from those of the untouched model is measured by llama-perplexity's protocol
(evaluation.py), and the tensor gets its own values back.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.tensors import ByteArray, SourceTensor, row_chunks
from tritgguf.converter.errors import EngineError
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.quant.codec import float_codec
from tritgguf.runtime.engine.context import new_weights
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.placement import Placement
from tritgguf.runtime.measure.chunks import Chunks
from tritgguf.runtime.measure.evaluation import chunk_scores, encoded_chunk
from tritgguf.runtime.measure.network import Network
from tritgguf.runtime.measure.scores import Scores

ON_CPU = Placement(0)


class Trials:
    """A loaded F16 model; a context manager. The file isn't needed any more once it is made."""

    def __init__(self, path: Path, n_ctx: int, threads: int | None) -> None:
        self._n_threads = threads or default_threads()
        self._weights = new_weights()
        self.network = Network(
            path, n_ctx, n_threads=self._n_threads, placement=ON_CPU, observer=self._weights, writable=True
        )

    def begin(self, chunks: Chunks, step: Step) -> None:
        """Keep the untouched model's predictions of some chunks; `step` is called with each chunk's tokens."""
        self._chunks, self._step = chunks, step
        self._base = []
        for chunk in range(len(chunks)):
            self._base.append(encoded_chunk(self.network, chunks, chunk, self._n_threads)[1])
            step(chunks.n_ctx)

    def divergence(self, plan: TensorPlan, source: SourceTensor, n_chunks: int) -> float:
        """Return the mean KL divergence in nats, at least 0, with a tensor stored as its plan says.

        It is that of the first `n_chunks` chunks. EngineError where the tensor can't be replaced in memory.
        """
        name, half = plan.spec.name, float_codec("f16")

        def stored(rows: slice) -> ByteArray:
            return half.encode(plan.stored_values(source, rows)).reshape(-1)

        own = self._weights.read(name)
        if own.nbytes != 2 * np.prod(plan.spec.shape):
            raise EngineError(f"{name}: isn't F16 in memory, so its values can't be replaced")
        try:
            offset = 0
            for data in parallel(stored, row_chunks(plan.spec.shape), self._n_threads):
                self._weights.write(name, data, offset)
                offset += data.nbytes
            return self._measured(n_chunks)
        finally:
            self._weights.write(name, own)

    def _measured(self, n_chunks: int) -> float:
        found: list[Scores] = []
        for chunk, base in enumerate(self._base[:n_chunks]):
            found += chunk_scores(self.network, self._chunks, chunk, base, self._n_threads)
            self._step(self._chunks.n_ctx)
        klds = [score.kld for score in found if score.kld is not None]
        return max(float(np.concatenate(klds).mean()), 0.0)

    def close(self) -> None:
        self.network.close()

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
