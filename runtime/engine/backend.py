"""The native runtime: llama.cpp, called through llama-cpp-python's ctypes functions.

Only this file, context.py, vocab.py and sampler.py call it.

The high-level class `llama_cpp.Llama` isn't used: it overrides the file's yarn parameters, keeps an array of
n_ctx x n_vocab floats and has no parameter for the callbacks.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import product_verdicts, relu2
from tritgguf.runtime.engine.cpu_backend import amx_is_broken, load_backends
from tritgguf.runtime.engine.devices import gpus
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions
from tritgguf.runtime.engine.gguf_header import (
    Header,
    check_loadable,
    check_weights,
    read_header,
    why_not_loaded,
)
from tritgguf.runtime.engine.gpu_memory import ALL_LAYERS, CACHE_TOKENS, layer_bytes
from tritgguf.runtime.engine.interrupt import interruptible
from tritgguf.runtime.engine.kernels.install import CpuKernels, install
from tritgguf.runtime.engine.memory import available_memory, cache_bytes, check_memory
from tritgguf.runtime.engine.native_log import NativeLog
from tritgguf.runtime.engine.placement import ANYWHERE, CPU_ALONE, Placed, Placement, place

# A failing assertion in ggml would otherwise start gdb on this process to print a C backtrace.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
# How often GNU's OpenMP asks before a thread that waits sleeps. By default that is for milliseconds, and on a shared
# machine it keeps the core from the thread that it waits for. docs/performance.md, On a busy machine.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

product_verdicts.check_loading()
try:
    import llama_cpp
    from llama_cpp import llama_cpp as native
    from llama_cpp._ggml import libggml

    from tritgguf.runtime.engine.vocab import Vocab
except (ImportError, OSError, RuntimeError) as error:
    raise EngineError(f"llama-cpp-python can't be loaded ({error}); install it again") from error

VERSION: str = llama_cpp.__version__

# These callbacks must live as long as the library holds them.
_log = NativeLog()
_log_callback = native.llama_log_callback(lambda level, text, _user_data: _log.write(level, text))
native.llama_log_set(_log_callback, ctypes.c_void_p(0))
native.llama_backend_init()
load_backends(native._lib, libggml)
# Buffers in which llama.cpp keeps weights in another order: AMX's is one, the others only repack Q4_0 and the like.
EXTRA_BUFFERS = not amx_is_broken(native._lib)
_NO_MEMORY = "unable to allocate"  # what llama.cpp says of a device that can't hold its layers
# A list that an empty element ends.
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
    if "RPC" in reason:
        causes = "a server of --rpc that ended: it lacked memory, its GPU a type of this file, or the network failed"
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
    """Return whether llama.cpp can put layers on a GPU of this machine."""
    if native.llama_supports_rpc():  # which counts as a GPU, though it has none of its own
        return bool(gpus(ggml()))
    return bool(native.llama_supports_gpu_offload())


def ggml() -> GgmlFunctions:
    """Return ggml's functions; not those of `libggml`: that may be a copy with a registry that libllama doesn't use."""
    return GgmlFunctions(native._lib)


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
    return next((device.target for device in gpus(ggml()) if device.target != "any"), "any")


def _kinds(placed: Placed) -> set[product_verdicts.DeviceKind]:
    """Return which devices of this machine multiply weights."""
    kinds: set[product_verdicts.DeviceKind] = set() if placed.n_gpu_layers == ALL_LAYERS else {"cpu"}
    return kinds | {"gpu"} if placed.local else kinds


class Model:
    """A loaded GGUF file; free it with close() or a with statement.

    `placement` is by default all layers on GPUs, where there are such and the model can run there, or as many as fit
    beside a KV cache for `cache_tokens` tokens. `header` is the file's header, where the caller has read it already.
    `writable` copies the weights into memory in ggml's order, instead of mapping the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vocab_only: bool = False,
        placement: Placement = ANYWHERE,
        cache_tokens: int | None = None,
        header: Header | None = None,
        writable: bool = False,
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
        params.load_mode = native.LLAMA_LOAD_MODE_NONE if writable else native.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = EXTRA_BUFFERS and not writable
        if self.needs_relu2:
            relu2.check_request(self.path, header.values, placement)
            params.kv_overrides = _STOCK_ARCHITECTURE
        only_cpu = vocab_only or self.needs_relu2
        self._placed = CPU_ALONE if only_cpu else self._place(placement, cache_tokens or CACHE_TOKENS)
        params.devices, params.tensor_split = self._placed.device_list, self._placed.shares
        params.n_gpu_layers = self._placed.n_gpu_layers
        try:
            if not vocab_only:
                product_verdicts.check_products(self.path, _kinds(self._placed))
            self._free_before = available_memory()
            self._load(params)
        except BaseException:
            self._placed.disconnect()
            raise
        self.vocab = Vocab(native.llama_model_get_vocab(self.handle))
        self.n_ctx_train: int = native.llama_model_n_ctx_train(self.handle)
        template = native.llama_model_chat_template(self.handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None

    def _place(self, placement: Placement, cache_tokens: int) -> Placed:
        def layers() -> list[int]:
            return layer_bytes(self.path, self.header, cache_tokens)

        return place(ggml(), placement, has_gpus=supports_gpu(), layers=layers)

    def _load(self, params: Any) -> None:  # noqa: ANN401
        _log.clear()
        with interruptible() as interrupt:
            progress = native.llama_progress_callback(lambda *_: not interrupt.requested)
            params.progress_callback = progress
            self.handle = native.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.handle:
            reason = why_not_loaded(self.path)
            remedy = "convert the model again"
            if self.uses_devices and _NO_MEMORY in _log.reason():
                remedy = "send fewer layers there (--gpu-layers), or none with --gpu-layers 0"
            raise EngineError(reason or f"{self.path}: llama.cpp can't load it ({_log.reason()}); {remedy}")

    @property
    def uses_devices(self) -> bool:
        """Whether GPUs or servers compute some of its layers."""
        return self._placed.n_gpu_layers != 0

    @property
    def layers_in_words(self) -> str:
        """Return where the layers are computed, such as "all 29 on the CPU"."""
        return self._placed.in_words(native.llama_model_n_layer(self.handle) + 1)

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
        n_elsewhere = self._placed.n_gpu_layers
        n_cpu_layers = 0 if n_elsewhere == ALL_LAYERS else max(0, n_layers - n_elsewhere)
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
            self._placed.disconnect()
            self.handle = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
