"""The sums of the squares of every linear layer's inputs, collected while a context evaluates tokens.

llama.cpp calls an evaluation callback for every node of a graph: once before the node, to ask whether the callback
needs its data, and if so again after it is computed. The callback here asks for products of a layer's weights, and
reads their inputs, which still have their values then. These are the nodes and sums of llama.cpp's llama-imatrix:
https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams
from tritgguf.runtime.engine.relu2 import KNOWN_VERSION, Tensor, check_layout

_F32, _I32 = 0, 26  # enum ggml_type
LAYER = "blk."
Sums = NDArray[np.float64]


class Activations:
    """What the callback has collected: of each layer, by its tensor's name, sums and counts.

    `sums` are float64 (n_matrices, n_columns); `counts` are int64, (1,), or (n_matrices,) where each input chooses
    among matrices, as experts do. `library` is ggml; the object must outlive the context that calls it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        check_layout(library)
        functions = GgmlFunctions(library)
        self._product, self._product_of_experts = _operations(functions)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._copy = functions.function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self.sums: dict[str, Sums] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self._error: BaseException | None = None

    def callback(self, address: int, is_question: int, _data: int) -> int:
        """Answer llama.cpp: whether this node is wanted, or whether to go on."""
        node = Tensor.from_address(address)
        if is_question:
            return self._error is None and self._is_wanted(node)
        try:
            weights, inputs = (Tensor.from_address(source) for source in node.src[:2])
            name = _layer(weights)
            if node.op == self._product:
                self._add(name, weights, inputs)
            else:
                self._add_of_experts(name, weights, inputs, Tensor.from_address(node.src[2]))
        except BaseException as error:  # ctypes would print it and go on; check() raises it
            self._error = error
        return 1

    def check(self) -> None:
        """Raise what went wrong in the callback; EngineError where an input isn't finite."""
        if self._error is not None:
            raise self._error
        for name, sums in self.sums.items():
            if not np.isfinite(sums).all():
                raise EngineError(
                    f"the inputs of {name} aren't finite: the model's weights are damaged, convert it again"
                )

    def _is_wanted(self, node: Tensor) -> bool:
        if node.op == self._product_of_experts:
            return True
        if node.op != self._product:
            return False
        weights, inputs = (Tensor.from_address(source) for source in node.src[:2])
        return inputs.type == _F32 and _layer(weights).startswith(LAYER)

    def _add(self, name: str, weights: Tensor, inputs: Tensor) -> None:
        """Add the inputs of a product with one matrix, or with several of which each has its own inputs."""
        values = self._values(inputs)
        _, _, n_inner, n_outer = weights.ne
        sums = self._sums(name, n_inner * n_outer, values.shape[-1])
        for outer, inner in np.ndindex(values.shape[:2]):
            rows = values[outer, inner]
            sums[outer % n_outer * n_inner + inner % n_inner] += np.einsum("ij,ij->j", rows, rows)
        count = values.size // values.shape[-1] // (n_inner * n_outer)
        self.counts.setdefault(name, np.zeros(1, np.int64))[:] += count

    def _add_of_experts(self, name: str, weights: Tensor, inputs: Tensor, chosen: Tensor) -> None:
        """Add each token's inputs to those of the experts that it chose."""
        values, experts = self._values(inputs)[0], self._values(chosen)[0, 0]  # (tokens, places, columns), (tokens, of)
        n_experts = int(weights.ne[2])
        sums = self._sums(name, n_experts, values.shape[-1])
        counts = self.counts.setdefault(name, np.zeros(n_experts, np.int64))
        for expert in np.unique(experts):
            tokens, places = np.nonzero(experts == expert)
            rows = values[tokens, places % values.shape[1]]
            sums[expert] += np.einsum("ij,ij->j", rows, rows)
            counts[expert] += len(rows)

    def _sums(self, name: str, n_matrices: int, n_columns: int) -> Sums:
        sums = self.sums.setdefault(name, np.zeros((n_matrices, n_columns)))
        if sums.shape != (n_matrices, n_columns):
            raise EngineError(
                f"{name} is {n_matrices} x {n_columns} in one product and {' x '.join(map(str, sums.shape))} in "
                f"another: this llama.cpp's graph isn't the one known; install llama-cpp-python {KNOWN_VERSION}"
            )
        return sums

    def _values(self, tensor: Tensor) -> NDArray[Any]:
        """Return a copy of a tensor of float32 or int32, slowest axis first, wherever its memory is."""
        shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
        n_bytes = 4 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        kind = {_F32: np.float32, _I32: np.int32}.get(tensor.type)
        if kind is None or n_bytes % 4:
            raise EngineError(
                f"the inputs {tensor.name.decode()} are of ggml's type {tensor.type}, expected float32: this "
                f"llama.cpp's graph isn't the one known; install llama-cpp-python {KNOWN_VERSION}"
            )
        copied = np.empty(n_bytes // 4, kind)
        self._copy(ctypes.addressof(tensor), copied.ctypes.data, 0, n_bytes)
        return as_strided(copied, shape, strides)


def _layer(weights: Tensor) -> str:
    """Return a tensor's name; a copy of it on a device is called DEVICE#NAME#NUMBER."""
    name: str = weights.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _operations(functions: GgmlFunctions) -> tuple[int, int]:
    """Return ggml's numbers of its products, with a matrix and with chosen ones, read off nodes that it makes."""
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    new = functions.function("ggml_new_tensor_3d", pointer, pointer, integer, number, number, number)
    product = functions.function("ggml_mul_mat", pointer, pointer, pointer, pointer)
    of_experts = functions.function("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
    context = functions.function("ggml_init", pointer, InitParams)(InitParams(1 << 16, None, False))
    try:
        weights, inputs, chosen = (new(context, kind, 4, 1, 1) for kind in (_F32, _F32, _I32))
        nodes = (product(context, weights, inputs), of_experts(context, weights, inputs, chosen))
        one, chosen_one = (int(Tensor.from_address(node).op) for node in nodes)
        return one, chosen_one
    finally:
        functions.function("ggml_free", None, pointer)(context)
