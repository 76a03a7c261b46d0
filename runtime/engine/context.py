"""A context: the state of conversations with a model, and what llama.cpp computes for a batch of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from llama_cpp import llama_cpp as native
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import relu2
from tritgguf.runtime.engine.activations import Activations
from tritgguf.runtime.engine.backend import Model, fresh_log
from tritgguf.runtime.engine.interrupt import interruptible
from tritgguf.runtime.engine.weights import Weights

# Rows of logits that one batch may ask for, unless its context is made for more: each costs n_vocab floats in the
# compute buffer, 600 KB for Qwen2.5.
MAX_OUTPUT_ROWS = 64
_NO_SLOT, _ABORTED = 1, 2  # results of llama_decode
_NO_ABORT_CALLBACK = native.ggml_abort_callback()


def new_activations() -> Activations:
    """Return what sees the inputs of every linear layer of a Context that is given it."""
    return Activations(libggml)


def new_weights() -> Weights:
    """Return what finds the weights in the memory of a Context that is given it."""
    return Weights(libggml)


class Observer(Protocol):
    """What llama.cpp calls for every node of a graph, as its evaluation callback."""

    def callback(self, address: int, is_question: int, _data: int) -> int:
        """Answer whether the node at this address is wanted, or, once it is computed, whether to go on."""
        ...


class Row(NamedTuple):
    """One token of a batch: its place in its sequence, and whether the logits after it are wanted."""

    token: int
    position: int
    sequence: int = 0
    wants_logits: bool = False


class Context:
    """The state of one conversation with a model, or of `n_sequences`: their KV cache and the last decode's logits.

    Each sequence has `n_ctx` tokens. They share one cache, so that one batch evaluates tokens of any of them, and may
    ask for the logits of `n_outputs` of them. `f32_attention` is for comparisons with a reference: flash attention in
    half precision, the default, costs up to 3e-3 of the logits' norm. With `embeddings`, rows that want logits have
    embeddings() too. `observer` sees every node of the graph.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_threads: int,
        n_batch: int,
        n_outputs: int = MAX_OUTPUT_ROWS,
        f32_attention: bool = False,
        n_sequences: int = 1,
        embeddings: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.handle: Any = None
        self.n_batch = min(n_batch, n_ctx)
        self.n_threads = n_threads
        self.n_sequences = n_sequences
        self._n_vocab = model.vocab.n_tokens
        self._n_embd: int = native.llama_model_n_embd(model.handle)
        self.output_rows: list[int] = []  # the rows of the last batch that have logits
        params = native.llama_context_default_params()
        params.n_ctx = n_ctx * n_sequences
        params.n_seq_max, params.kv_unified = n_sequences, n_sequences > 1
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_outputs_max = min(max(n_outputs, n_sequences), self.n_batch)
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings = embeddings
        if embeddings:
            params.pooling_type = native.LLAMA_POOLING_TYPE_NONE
        params.swa_full = True  # a smaller window cache forgets what a shared prompt prefix would need
        if f32_attention:
            params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = native.GGML_TYPE_F32
        self.n_layers: int = native.llama_model_n_layer(model.handle)
        self.relu2: relu2.Relu2 | None = None
        if model.needs_relu2:
            self.relu2 = relu2.Relu2(libggml, native.ggml_backend_sched_eval_callback)
            params.cb_eval, params.cb_eval_user_data = self.relu2.callback, self.relu2.user_data
        if observer is not None:
            self._require_no_callback(model)
            self._callback = params.cb_eval = native.ggml_backend_sched_eval_callback(observer.callback)
        model.check_memory(n_ctx * n_sequences, value_bytes=4 if f32_attention else 2)
        log = fresh_log()
        self.handle = native.llama_init_from_model(model.handle, params)
        if not self.handle:
            size = f"{n_sequences} times {n_ctx}" if n_sequences > 1 else str(n_ctx)
            remedy = "ask for a smaller context"
            if model.uses_devices:
                remedy += ", or send fewer layers to GPUs (--gpu-layers)"
            raise EngineError(f"{model.path}: no context of {size} tokens can be set up ({log.reason()}); {remedy}")
        self._batch = native.llama_batch_init(self.n_batch, 0, 1)
        self._memory = native.llama_get_memory(self.handle)
        # A state can't lose a part of what it has seen, whatever llama.cpp says of it.
        self.can_shift = not model.has_states and bool(native.llama_memory_can_shift(self._memory))

    def _require_no_callback(self, model: Model) -> None:
        if self.relu2 is not None:
            raise EngineError(
                f"{model.path}: {relu2.ARCHITECTURE} runs through llama.cpp's only callback, so its layers "
                "can't be watched; it is ternary already and needs no importance matrix and no --budget"
            )

    def decode(self, tokens: Sequence[int], position: int, *, n_logits: int = 1) -> None:
        """Evaluate up to n_batch tokens, the first at `position`; logits() then has those of the last `n_logits`.

        Ctrl-C stops the work and raises KeyboardInterrupt. After any exception the cache may hold some of the tokens:
        call keep().
        """
        first = len(tokens) - n_logits
        self.decode_batch([Row(token, position + n, 0, n >= first) for n, token in enumerate(tokens)])

    def decode_batch(self, rows: Sequence[Row], stop: Callable[[], bool] | None = None) -> bool:
        """Evaluate up to n_batch tokens of any sequences; `stop` is asked meanwhile, return False if it says so.

        Ctrl-C stops it too. After that, and after an exception, the cache may hold some of the tokens: call keep() for
        each sequence.
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wants_logits
        self.output_rows = [index for index, row in enumerate(rows) if row.wants_logits]
        log = fresh_log()
        if self.relu2:
            self.relu2.start()
        if len(rows) == 1 and not self.relu2:
            # It takes little time, of which the calls for its thousand graph nodes would be much.
            result = native.llama_decode(self.handle, batch)
        else:
            result = self._decode_until_interrupted(batch, stop, asks=len(rows) > self.n_sequences)
        if result == _ABORTED:
            return False
        if result == _NO_SLOT:
            raise EngineError(f"the context has no room for {len(rows)} tokens at position {rows[0].position}")
        if result != 0:
            raise EngineError(f"evaluating {len(rows)} tokens at position {rows[0].position} failed ({log.reason()})")
        if self.relu2:
            self.relu2.check(self.n_layers)
        return True

    def _decode_until_interrupted(self, batch: Any, stop: Callable[[], bool] | None, *, asks: bool) -> int:  # noqa: ANN401
        """Evaluate a batch; raise Ctrl-C's exception at its end, or, if llama.cpp `asks` meanwhile, early.

        `stop` is asked as well.
        """
        with interruptible() as interrupt:
            asked = native.ggml_abort_callback(lambda _data: interrupt.requested or (stop is not None and stop()))
            native.llama_set_abort_callback(self.handle, asked if asks else _NO_ABORT_CALLBACK, None)
            result: int = native.llama_decode(self.handle, batch)
            native.llama_set_abort_callback(self.handle, _NO_ABORT_CALLBACK, None)
        return result

    def logits(self, output: int | None = None) -> NDArray[np.float32]:
        """Return the last decode's logits, (rows, n_vocab), which the next decode overwrites; EngineError if NaN.

        `output` asks for those of one row, (n_vocab,): 0 for the first that wants logits.
        """
        data = native.llama_get_logits(self.handle)
        rows: NDArray[np.float32] = np.ctypeslib.as_array(data, shape=(len(self.output_rows), self._n_vocab))
        rows = rows if output is None else rows[output]
        if np.isnan(rows.max()):
            raise EngineError("the model's logits are NaN: its weights are damaged, convert it again")
        return rows

    def set_threads(self, n_threads: int) -> None:
        """Compute with `n_threads` threads from now on."""
        self.n_threads = n_threads
        native.llama_set_n_threads(self.handle, n_threads, n_threads)

    def wait(self) -> None:
        """Return when the last decode is done: an accelerator may still be at work when decode() returns."""
        native.llama_synchronize(self.handle)

    def embeddings(self) -> NDArray[np.float32]:
        """Return the last decode's final hidden states, (rows, n_embd), which the next decode overwrites."""
        data = native.llama_get_embeddings(self.handle)
        return np.ctypeslib.as_array(data, shape=(len(self.output_rows), self._n_embd))

    def keep(self, n_tokens: int, sequence: int = 0) -> int:
        """Forget all but a sequence's first `n_tokens` tokens; return how many remain: 0 where it can't keep a part."""
        removed = n_tokens > 0 and native.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1)
        if removed and native.llama_memory_seq_pos_min(self._memory, sequence) == 0:
            return n_tokens
        if self.n_sequences > 1:
            native.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        else:
            native.llama_memory_clear(self._memory, True)
        return 0

    def share(self, n_tokens: int, source: int, target: int) -> None:
        """Make `target`, which must be empty, begin with the first `n_tokens` tokens of `source`; nothing is copied.

        Only where Model.has_states is false: a state can't be cut.
        """
        native.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def shift(self, sequence: int, start: int, end: int) -> None:
        """Forget a sequence's tokens from `start` to `end`, and move those behind to `start`; only where `can_shift`.

        What is moved has seen what is forgotten. No other sequence may share what is moved.
        """
        native.llama_memory_seq_rm(self._memory, sequence, start, end)
        native.llama_memory_seq_add(self._memory, sequence, end, -1, start - end)

    def close(self) -> None:
        if self.handle:
            native.llama_batch_free(self._batch)
            native.llama_free(self.handle)
            self.handle = None
