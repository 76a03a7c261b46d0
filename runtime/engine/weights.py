"""A loaded model's weights in memory: where each tensor is, so that other values can be written over it.

A graph's nodes name the tensors that they read. The callback looks at every node when llama.cpp asks whether its data
is wanted, and never wants it.
"""

from __future__ import annotations

import ctypes

import numpy as np

from tritgguf.converter.core.tensors import ByteArray
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions
from tritgguf.runtime.engine.relu2 import Tensor, check_layout

N_SOURCES = len(Tensor().src)
_WEIGHT = b".weight"


class Weights:
    """The weights that the graphs of a context have read so far, by name; the object must outlive the context.

    `library` is ggml. Only where the model was loaded as `writable` may they be written.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        check_layout(library)
        function, pointer, size = GgmlFunctions(library).function, ctypes.c_void_p, ctypes.c_size_t
        self._n_bytes = function("ggml_nbytes", size, pointer)
        self._get = function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._set = function("ggml_backend_tensor_set", None, pointer, pointer, size, size)
        self._addresses: dict[str, int] = {}

    def callback(self, address: int, is_question: int, _data: int) -> int:
        """Note which tensors a node reads; its data is never wanted."""
        if is_question:
            for source in Tensor.from_address(address).src:
                if not source:
                    break
                name = Tensor.from_address(source).name
                if name.endswith(_WEIGHT):
                    self._addresses[name.decode("utf-8", "replace")] = source
        return 0

    def read(self, name: str) -> ByteArray:
        """Return a tensor's bytes, uint8 (n,); EngineError where no graph has read a tensor of that name."""
        address = self._address(name)
        return self._read(address, 0, self._n_bytes(address))

    def write(self, name: str, data: ByteArray, offset: int = 0) -> None:
        """Write some of a tensor's bytes, uint8 (n,), and read them back; EngineError where they aren't the same."""
        address, n_bytes = self._address(name), data.nbytes
        if offset + n_bytes > self._n_bytes(address):
            raise EngineError(f"{name}: has {self._n_bytes(address)} bytes in memory, expected {offset + n_bytes}")
        self._set(address, data.ctypes.data, offset, n_bytes)
        if not np.array_equal(self._read(address, offset, n_bytes), data):
            raise EngineError(f"{name}: this build of llama.cpp keeps weights in another order: they can't be replaced")

    def _read(self, address: int, offset: int, n_bytes: int) -> ByteArray:
        data = np.empty(n_bytes, np.uint8)
        self._get(address, data.ctypes.data, offset, n_bytes)
        return data

    def _address(self, name: str) -> int:
        if name not in self._addresses:
            raise EngineError(f"{name}: llama.cpp's graph reads no tensor of that name where it can be replaced")
        return self._addresses[name]
