"""The native runtime: llama.cpp, called through llama-cpp-python's ctypes functions.

Only this file, vocab.py and sampler.py call it.

The high-level class `llama_cpp.Llama` isn't used: it overrides the file's yarn parameters, keeps an array of
n_ctx x n_vocab floats and has no parameter for the callbacks.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import product_verdicts, relu2
from tritgguf.runtime.engine.cpu_backend import amx_is_broken, load_backends
from tritgguf.runtime.engine.gguf_header import (
    Header,
    check_loadable,
    check_weights,
    read_header,
    why_not_loaded,
)
from tritgguf.runtime.engine.interrupt import interruptible
from tritgguf.runtime.engine.kernels.install import CpuKernels, install
from tritgguf.runtime.engine.memory import available_memory, cache_bytes, check_memory
from tritgguf.runtime.engine.native_log import NativeLog

# A failing assertion in ggml would otherwise start gdb on this process to print a C backtrace.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

product_verdicts.check_loading()
try:
    import llama_cpp
    from llama_cpp import llama_cpp as native
    from llama_cpp._ggml import libggml

    from tritgguf.runtime.engine.vocab import Vocab
except (ImportError, OSError, RuntimeError) as error:
    raise EngineError(f"llama-cpp-python can't be loaded ({error}); install it again") from error

VERSION: str = llama_cpp.__version__
ALL_LAYERS = -1
# Rows of logits that one batch may ask for, unless its context is made for more: each costs n_vocab floats in the
# compute buffer, 600 KB for Qwen2.5.
MAX_OUTPUT_ROWS = 64
_NO_SLOT, _ABORTED = 1, 2  # results of llama_decode

# These callbacks must live as long as the library holds them.
_log = NativeLog()
_log_callback = native.llama_log_callback(lambda level, text, _user_data: _log.write(level, text))
native.llama_log_set(_log_callback, ctypes.c_void_p(0))
native.llama_backend_init()
load_backends(native._lib, libggml)
# Buffers in which llama.cpp keeps weights in another order: AMX's is one, the others only repack Q4_0 and the like.
EXTRA_BUFFERS = not amx_is_broken(native._lib)
_NO_ABORT_CALLBACK = native.ggml_abort_callback()
# Two lists, each ended by an empty element. No devices: n_gpu_layers = 0 alone would let large batches use the GPU.
_NO_DEVICES = (ctypes.c_void_p * 1)()
_STOCK_ARCHITECTURE = (native.llama_model_kv_override * 2)()
_override: Any = _STOCK_ARCHITECTURE[0]
_override.tag, _override.key = native.LLAMA_KV_OVERRIDE_TYPE_STR, b"general.architecture"
_override.value.val_str = relu2.STOCK_ARCHITECTURE.encode()
_cpu_kernels: CpuKernels | None = None
_installing = threading.Lock()


def _die_in_one_line(message: bytes | None) -> None:
    reason = " ".join((message or b"unknown reason").decode("utf-8", "replace").split())
    reason = re.sub(r"^\S*[/\\]", "", reason)  # the folder in which llama.cpp was built
    reason = "".join(letter if letter.isprintable() else "?" for letter in reason)  # this goes past sys.stderr
    causes = "a bug in it, too little memory or a damaged file"  # only who wrote the assertion knows
    os.write(2, f"error: llama.cpp stopped itself: {reason}; the cause may be {causes}\n".encode())
    os._exit(1)


_on_native_abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_die_in_one_line)


def exit_on_native_abort() -> None:
    """For programs: a failed assertion in llama.cpp ends the process with one line and exit code 1."""
    libggml.ggml_set_abort_callback.restype = ctypes.c_void_p
    libggml.ggml_set_abort_callback(_on_native_abort)


def show_native_log() -> None:
    """Print llama.cpp's log to standard error, for debugging."""
    _log.to_stderr = True


def fresh_log() -> NativeLog:
    """Return llama.cpp's log, emptied: its reason() is of what is called next."""
    _log.clear()
    return _log


def supports_gpu() -> bool:
    """Return whether this build of llama.cpp can put layers on an accelerator."""
    return bool(native.llama_supports_gpu_offload())


def library() -> ctypes.CDLL:
    """Return libllama, for those who call ggml's functions with types of their own."""
    found: ctypes.CDLL = native._lib
    return found


def system_info() -> str:
    """Return which instructions llama.cpp was built for, in its own words."""
    info: bytes = native.llama_print_system_info()
    return info.decode("utf-8", "replace").strip()


def cpu_kernels() -> CpuKernels:
    """Return what multiplies ternary weights on the CPU in this process, and why; the first call installs it."""
    global _cpu_kernels
    with _installing:
        if _cpu_kernels is None:
            # Not libggml: that may be a copy under another name, with a registry in which libllama doesn't look.
            _cpu_kernels = install(native._lib, VERSION)
        return _cpu_kernels


def accelerator() -> str | None:
    """Return which target of `convert --for` this build offloads to; "any" for one that isn't known, None for a CPU."""
    if not supports_gpu():
        return None
    names = {"CUDA": "cuda", "ROCm": "cuda", "HIP": "cuda", "Metal": "metal", "MTL": "metal", "Vulkan": "vulkan"}
    try:
        get, registry, name = (
            libggml.ggml_backend_dev_get,
            libggml.ggml_backend_dev_backend_reg,
            libggml.ggml_backend_reg_name,
        )
        count = libggml.ggml_backend_dev_count
    except AttributeError:  # Windows finds them in another library
        return "any"
    count.restype, name.restype = ctypes.c_size_t, ctypes.c_char_p
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    registry.restype, registry.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    name.argtypes = [ctypes.c_void_p]
    found = [(name(registry(get(index))) or b"").decode("ascii", "replace") for index in range(count())]
    return next((names[device] for device in found if device in names), "any")


def _kinds(n_gpu_layers: int) -> tuple[product_verdicts.DeviceKind, ...]:
    """Return which devices multiply weights."""
    if n_gpu_layers == ALL_LAYERS:
        return ("gpu",)
    return ("gpu", "cpu") if n_gpu_layers else ("cpu",)


class Model:
    """A loaded GGUF file; free it with close() or a with statement.

    `n_gpu_layers` None means all layers where llama.cpp was built for an accelerator and the model can run there.
    `header` is the file's header, where the caller has read it already.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vocab_only: bool = False,
        n_gpu_layers: int | None = None,
        header: Header | None = None,
    ) -> None:
        self.path = Path(path)
        self.handle: Any = None
        self.header = header = header or read_header(self.path)
        check_loadable(self.path, header)
        if not vocab_only:
            check_weights(self.path, header)
            cpu_kernels()
        self.needs_relu2 = header.values["general.architecture"] == relu2.ARCHITECTURE
        params = native.llama_model_default_params()
        params.vocab_only = vocab_only
        params.load_mode = native.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = EXTRA_BUFFERS
        if self.needs_relu2:
            relu2.check_request(self.path, header.values, n_gpu_layers)
            params.kv_overrides, params.devices = _STOCK_ARCHITECTURE, ctypes.addressof(_NO_DEVICES)
            params.n_gpu_layers = 0
        else:
            best = ALL_LAYERS if supports_gpu() else 0
            params.n_gpu_layers = best if n_gpu_layers is None else n_gpu_layers
        self._n_gpu_layers: int = params.n_gpu_layers if supports_gpu() else 0
        if not vocab_only:
            product_verdicts.check_products(self.path, _kinds(self._n_gpu_layers))
        self._free_before = available_memory()
        _log.clear()
        with interruptible() as interrupt:
            progress = native.llama_progress_callback(lambda *_: not interrupt.requested)
            params.progress_callback = progress
            self.handle = native.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.handle:
            reason = why_not_loaded(self.path)
            raise EngineError(
                reason or f"{self.path}: llama.cpp can't load it ({_log.reason()}); convert the model again"
            )
        self.vocab = Vocab(native.llama_model_get_vocab(self.handle))
        self.n_ctx_train: int = native.llama_model_n_ctx_train(self.handle)
        template = native.llama_model_chat_template(self.handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None

    @property
    def description(self) -> str:
        """Return architecture, size and tensor type in a few words."""
        buffer = ctypes.create_string_buffer(256)
        native.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def n_params(self) -> int:
        """Return the number of weights."""
        return int(native.llama_model_n_params(self.handle))

    def check_memory(self, n_ctx: int, *, value_bytes: int) -> None:
        """Raise EngineError if the weights and a KV cache for `n_ctx` tokens can't fit into memory.

        Counts what the CPU's layers take, never more: llama.cpp itself refuses what a GPU can't hold, and a model with
        layers that have a state instead of a cache isn't judged unless the file tells which.
        """
        available, n_layers = available_memory(), native.llama_model_n_layer(self.handle)
        if available is None or self._free_before is None:
            return
        n_cpu_layers = 0 if self._n_gpu_layers < 0 else max(0, n_layers - self._n_gpu_layers)
        weights = native.llama_model_size(self.handle) * n_cpu_layers // n_layers
        cache = cache_bytes(self.header, n_ctx, value_bytes=value_bytes) * n_cpu_layers // n_layers
        if self.has_states and not self.header.kv_heads:
            cache = 0
        # Weights that were copied while loading are gone from `available`, mapped ones aren't; and other contexts
        # have been set up since loading.
        free = min(self._free_before, available + weights)
        check_memory(self.path, n_ctx, cache=cache, weights=weights, free=free)

    @property
    def has_states(self) -> bool:
        """Return whether layers have a state instead of a cache, which keeps no part of what it has seen."""
        return bool(native.llama_model_is_recurrent(self.handle) or native.llama_model_is_hybrid(self.handle))

    def close(self) -> None:
        if self.handle:
            native.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
    embeddings() too.
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
        model.check_memory(n_ctx * n_sequences, value_bytes=4 if f32_attention else 2)
        _log.clear()
        self.handle = native.llama_init_from_model(model.handle, params)
        if not self.handle:
            size = f"{n_sequences} times {n_ctx}" if n_sequences > 1 else str(n_ctx)
            raise EngineError(
                f"{model.path}: no context of {size} tokens can be set up ({_log.reason()}); ask for a smaller context"
            )
        self._batch = native.llama_batch_init(self.n_batch, 0, 1)
        self._memory = native.llama_get_memory(self.handle)

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
        _log.clear()
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
            raise EngineError(f"evaluating {len(rows)} tokens at position {rows[0].position} failed ({_log.reason()})")
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

    def close(self) -> None:
        if self.handle:
            native.llama_batch_free(self._batch)
            native.llama_free(self.handle)
            self.handle = None
