"""The child process that measures how long a weight of each type takes when a token is generated.

A generated token multiplies every weight once, so it computes products with one token, of more weights than a cache
holds, with the CPU kernels that models run with. As many threads as models use have a product each, at the same time,
so that they share the memory's bandwidth. What counts is their own processor time: other programs hardly add to it,
while threads that wait for each other would take many times as long on a busy machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import TritggufError
from tritgguf.converter.planning.targets import ternary_types
from tritgguf.converter.quant.codec import ternary_codec
from tritgguf.runtime.engine import relu2
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.kernels.install import fast_types
from tritgguf.runtime.engine.kernels.routes import ACCELERATOR, CPU
from tritgguf.runtime.engine.kernels.self_test import OnDevice, Products, Shape

N_INPUTS, N_ROWS = 2048, 1 << 16  # 134 million weights of each type: 220 MB of five types, which take turns
MOST_THREADS = 8  # with more, too few rows are left for each; by then memory is what limits them
MOST_ROUNDS, MOST_SECONDS = 20, 0.5
_DIFFERENT_ROWS = 64  # the others repeat them
_SLACK_BYTES = 1 << 20  # of ggml's memory: descriptions of tensors, the graph, activations and results
_F32 = 0  # enum ggml_type


def main() -> None:
    """Print the seconds per weight by type as JSON."""
    try:
        from tritgguf.runtime.engine import backend  # not at the top: it may fail

        route = backend.cpu_kernels().route
    except TritggufError as error:
        raise SystemExit(str(error)) from error
    ggml, fast, n_threads = backend.ggml(), fast_types(), min(default_threads(), MOST_THREADS)
    products: dict[str, list[_Product]] = {}
    with contextlib.ExitStack() as stack:
        for name in ternary_types("cpu", fast):
            device = ACCELERATOR if route == "accel" and name in fast else CPU
            graphs = [stack.enter_context(graph_of(ggml, name, N_ROWS // n_threads))[0] for _ in range(n_threads)]
            products[name] = [_Product(OnDevice(ggml, device), graph) for graph in graphs]
        print(json.dumps(_measure(products)))


def _measure(products: Mapping[str, Sequence[_Product]]) -> dict[str, float]:
    """Return the median seconds of each type's products, side by side, by the weights of all of them."""
    n_threads, begun = len(next(iter(products.values()))), time.perf_counter()
    start = threading.Barrier(n_threads)
    taken: dict[str, list[float]] = {name: [] for name in products}
    with ThreadPoolExecutor(n_threads) as pool:
        for number in range(1 + MOST_ROUNDS):  # the first one isn't timed
            for name, side_by_side in products.items():
                seconds = pool.map(lambda product: product.seconds(start), side_by_side)
                taken[name].append(statistics.fmean(seconds))
            if number and time.perf_counter() - begun > MOST_SECONDS:
                break
    return {name: statistics.median(seconds[1:]) / (N_INPUTS * N_ROWS) for name, seconds in taken.items()}


@dataclass(frozen=True)
class _Product:
    """A product that one thread computes."""

    compute: OnDevice
    graph: int

    def seconds(self, start: threading.Barrier) -> float:
        """Wait for the others, compute it, and return this thread's processor time."""
        clock = time.perf_counter if sys.platform == "win32" else time.thread_time  # which is too coarse there
        start.wait()
        begun = clock()
        self.compute(self.graph, 1)
        return clock() - begun


@contextlib.contextmanager
def graph_of(ggml: GgmlFunctions, type_name: str, n_rows: int) -> Iterator[tuple[int, int]]:
    """Yield a graph that multiplies weights of a type with one token, and the tensor of its product, (1, n_rows)."""
    type_number = int(ternary_codec(type_name).ggml_type)
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    new = ggml.function("ggml_new_tensor_2d", pointer, pointer, integer, long, long)
    case = Products(ggml).random_case(type_number, Shape(N_INPUTS, _DIFFERENT_ROWS, 1, 1))
    n_bytes = case.weights.nbytes * (n_rows // _DIFFERENT_ROWS)
    pages = mmap.mmap(-1, n_bytes + _SLACK_BYTES)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # small ones, as a mapped file has: with huge ones memory is faster
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    memory = InitParams(len(pages), ctypes.addressof(ctypes.c_char.from_buffer(pages)), False)
    context = ggml.function("ggml_init", pointer, InitParams)(memory)
    try:
        weights = new(context, type_number, N_INPUTS, n_rows)
        token = new(context, _F32, N_INPUTS, 1)
        _stored(weights, n_bytes).reshape(-1, *case.weights.shape)[:] = case.weights
        _stored(token, case.activations.nbytes)[:] = case.activations.view(np.uint8).reshape(-1)
        product = ggml.function("ggml_mul_mat", pointer, pointer, pointer, pointer)(context, weights, token)
        graph = ggml.function("ggml_new_graph", pointer, pointer)(context)
        ggml.function("ggml_build_forward_expand", None, pointer, pointer)(graph, product)
        yield graph, product
    finally:
        ggml.function("ggml_free", None, pointer)(context)


def _stored(tensor: int, n_bytes: int) -> NDArray[np.uint8]:
    """Return a tensor's bytes, to be written."""
    address = relu2.Tensor.from_address(tensor).data or 0
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))
