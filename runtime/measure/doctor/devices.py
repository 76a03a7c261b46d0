"""Products on llama.cpp's devices, of weights that lie where llama.cpp would put them for that device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritgguf.runtime.engine.devices import ACCELERATOR, CPU, Device, all_devices
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams

_F32 = 0  # enum ggml_type
_FOR_WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS
_MEMORY_BYTES = 1 << 20  # of the tensors' descriptions
MOST_REPETITIONS, MOST_SECONDS = 5, 0.5  # of one measurement

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where weights lie, and the backend that multiplies them."""

    device: Device
    backend: int
    buffer_type: int


class Devices:
    """The devices of a loaded llama.cpp; the CPU computes with one thread.

    `extra_buffers` is whether models' weights may lie in the CPU's buffers of another order.
    """

    def __init__(self, ggml: GgmlFunctions, *, extra_buffers: bool) -> None:
        self._ggml = ggml
        pointer, integer, long, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
        self._pointer, self._extra_buffers = pointer, extra_buffers
        self._init = ggml.function("ggml_init", pointer, InitParams)
        self._free = ggml.function("ggml_free", None, pointer)
        self._new = ggml.function("ggml_new_tensor_2d", pointer, pointer, integer, long, long)
        self._multiply = ggml.function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        self._new_graph = ggml.function("ggml_new_graph", pointer, pointer)
        self._expand = ggml.function("ggml_build_forward_expand", None, pointer, pointer)
        self._supports = ggml.function("ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
        self._buffer_type = ggml.function("ggml_backend_dev_buffer_type", pointer, pointer)
        self._place = ggml.function("ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer)
        self._free_buffer = ggml.function("ggml_backend_buffer_free", None, pointer)
        self._set_usage = ggml.function("ggml_backend_buffer_set_usage", None, pointer, integer)
        self._set = ggml.function("ggml_backend_tensor_set", None, pointer, pointer, size, size)
        self._get = ggml.function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._start = ggml.function("ggml_backend_dev_init", pointer, pointer, pointer)
        self._compute = ggml.function("ggml_backend_graph_compute", integer, pointer, pointer)
        self._backends: dict[int, int] = {}

    def places(self, device: Device) -> Iterator[Place]:
        """Yield the places of a device's weights, best first: as make_cpu_buft_list in llama.cpp's llama-model.cpp."""
        if device.kind == CPU:
            for beside in all_devices(self._ggml):
                if beside.kind == ACCELERATOR:
                    yield Place(beside, self._backend(beside), self._buffer_type(beside.address))
            for extra in self._extra_buffer_types(device) if self._extra_buffers else ():
                yield Place(device, self._backend(device), extra)
        yield Place(device, self._backend(device), self._buffer_type(device.address))

    @contextmanager
    def product(self, place: Place, type_number: int, weights: NDArray[np.uint8], inputs: Floats) -> Iterator[Product]:
        """Yield the product of weights, (n_rows, row bytes), and inputs, (n_tokens, n_inputs), ready to be computed."""
        contexts = [self._init(InitParams(_MEMORY_BYTES, None, True)) for _ in range(2)]
        buffers: list[int] = []
        try:
            matrix = self._new(contexts[0], type_number, inputs.shape[1], len(weights))
            buffers.append(self._placed(contexts[0], place.buffer_type))
            self._set_usage(buffers[0], _FOR_WEIGHTS)
            columns = self._new(contexts[1], _F32, inputs.shape[1], len(inputs))
            result = self._multiply(contexts[1], matrix, columns)
            if not self._supports(place.device.address, result):
                raise UnsupportedProductError
            buffers.append(self._placed(contexts[1], self._buffer_type(place.device.address)))
            graph = self._new_graph(contexts[1])
            self._expand(graph, result)
            for tensor, values in ((matrix, weights), (columns, inputs)):
                contiguous = np.ascontiguousarray(values)
                self._set(tensor, contiguous.ctypes.data, 0, contiguous.nbytes)
            found: Floats = np.empty((len(inputs), len(weights)), np.float32)
            yield Product(
                lambda: self._compute(place.backend, graph),
                lambda: self._get(result, found.ctypes.data, 0, found.nbytes),
                found,
            )
        finally:
            for buffer in buffers:
                self._free_buffer(buffer)
            for context in contexts:
                self._free(context)

    def _placed(self, context: int, buffer_type: int) -> int:
        buffer: int | None = self._place(context, buffer_type)
        if not buffer:
            raise MemoryError("no buffer for a product")
        return buffer

    def _backend(self, device: Device) -> int:
        if device.address not in self._backends:
            self._backends[device.address] = backend = self._start(device.address, None)
            if set_threads := self._named(device, b"ggml_backend_set_n_threads"):
                ctypes.CFUNCTYPE(None, self._pointer, ctypes.c_int)(set_threads)(backend, 1)
        return self._backends[device.address]

    def _named(self, device: Device, name: bytes) -> int | None:
        pointer = self._pointer
        registry = self._ggml.function("ggml_backend_dev_backend_reg", pointer, pointer)(device.address)
        get = self._ggml.function("ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
        address: int | None = get(registry, name)
        return address

    def _extra_buffer_types(self, device: Device) -> Iterator[int]:
        listing = self._named(device, b"ggml_backend_dev_get_extra_bufts")
        if listing is None:
            return
        get = ctypes.CFUNCTYPE(self._pointer, self._pointer)(listing)
        listed: Any = ctypes.cast(get(device.address), ctypes.POINTER(self._pointer))
        number = 0
        while listed and listed[number]:
            yield listed[number]
            number += 1


class UnsupportedProductError(Exception):
    """A device doesn't multiply weights of that type in that place."""


@dataclass(frozen=True)
class Product:
    """A product that can be computed again and again."""

    compute: Callable[[], object]
    fetch: Callable[[], object]
    _found: Floats

    def result(self) -> Floats:
        """Compute it and return (n_tokens, n_rows)."""
        self.compute()
        self.fetch()
        return self._found

    def seconds(self, clock: Callable[[], float]) -> float:
        """Return the least time of a few by a clock: other programs only add to it."""
        least, begun = float("inf"), clock()
        for _ in range(MOST_REPETITIONS):
            started = clock()
            self.compute()
            ended = clock()
            least = min(least, ended - started)
            if ended - begun > MOST_SECONDS:
                break
        return least
