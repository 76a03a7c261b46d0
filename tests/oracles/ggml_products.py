"""Products that stock llama.cpp computes: one matrix product as a graph on ggml's CPU backend."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAPH_BYTES = 1 << 20  # for the nodes; the data come on top
TILE_BYTES = 2 << 20  # of some types' work space, for up to three threads
F32 = 0


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _functions() -> dict[str, Any]:
    """ggml's functions with their types; from instances of the libraries' handles that nobody else uses."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "lib"
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    found = {}
    for library, name, result, arguments in (
        ("base", "ggml_init", pointer, (InitParams,)),
        ("base", "ggml_free", None, (pointer,)),
        ("base", "ggml_new_tensor_2d", pointer, (pointer, integer, long, long)),
        ("base", "ggml_mul_mat", pointer, (pointer, pointer, pointer)),
        ("base", "ggml_get_data", pointer, (pointer,)),
        ("base", "ggml_new_graph", pointer, (pointer,)),
        ("base", "ggml_build_forward_expand", None, (pointer, pointer)),
        ("cpu", "ggml_graph_compute_with_ctx", integer, (pointer, pointer, integer)),
        ("cpu", "ggml_cpu_init", None, ()),
    ):
        (path,) = [p for p in folder.iterdir() if p.name in (f"libggml-{library}.so", f"libggml-{library}.dylib")]
        function = getattr(ctypes.CDLL(str(path)), name)
        function.restype, function.argtypes = result, arguments
        found[name] = function
    found["ggml_cpu_init"]()
    return found


class GgmlProducts:
    """A graph of products: matrices of uint8 (n_rows, row bytes) of a ggml type, each times the same columns.

    The columns are float32, (n_columns, n_inputs). Each computation takes a work space from the context.
    """

    def __init__(
        self,
        type_number: int,
        matrices: Sequence[NDArray[np.uint8]],
        activations: NDArray[np.float32],
        n_computations: int = 1,
    ) -> None:
        self._ggml = ggml = _functions()
        n_columns, n_inputs = activations.shape
        n_bytes = GRAPH_BYTES + activations.nbytes + n_computations * (activations.nbytes // 2 + TILE_BYTES)
        n_bytes += sum(weights.nbytes + 4 * n_columns * len(weights) + 4096 for weights in matrices)
        self._context = ggml["ggml_init"](InitParams(n_bytes, None, False))
        columns = self._filled(F32, activations)
        self._graph = ggml["ggml_new_graph"](self._context)
        self._results = []
        for weights in matrices:
            product = ggml["ggml_mul_mat"](self._context, self._filled(type_number, weights, n_inputs), columns)
            ggml["ggml_build_forward_expand"](self._graph, product)
            self._results.append((ggml["ggml_get_data"](product), (n_columns, len(weights))))

    def _filled(self, type_number: int, values: NDArray[Any], n_inputs: int | None = None) -> int:
        tensor: int = self._ggml["ggml_new_tensor_2d"](
            self._context, type_number, n_inputs or values.shape[1], len(values)
        )
        contiguous = np.ascontiguousarray(values)
        ctypes.memmove(self._ggml["ggml_get_data"](tensor), contiguous.ctypes.data, contiguous.nbytes)
        return tensor

    def compute(self, n_threads: int = 1) -> None:
        assert self._ggml["ggml_graph_compute_with_ctx"](self._context, self._graph, n_threads) == 0

    def results(self, index: int = 0) -> NDArray[np.float32]:
        address, (n_columns, n_rows) = self._results[index]
        data = (ctypes.c_float * (n_columns * n_rows)).from_address(address)
        return np.array(data, np.float32).reshape(n_columns, n_rows)

    def close(self) -> None:
        self._ggml["ggml_free"](self._context)


def ggml_product(
    type_number: int, weights: NDArray[np.uint8], activations: NDArray[np.float32], n_threads: int = 1
) -> NDArray[np.float32]:
    """Return the results, float32 (n_columns, n_rows)."""
    products = GgmlProducts(type_number, [weights], activations)
    try:
        products.compute(n_threads)
        return products.results()
    finally:
        products.close()
