"""Compare the kernels' products with llama.cpp's own, through the very way they will be called.

That runs in a child process: where a structure isn't the known one, it may crash. The child needs neither a model nor
llama_cpp; `main` takes the path of libllama and the route.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import child_process, relu2
from tritgguf.runtime.engine.cpu_backend import load_backends
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels.routes import ACCELERATOR, CPU, ROUTES, Device, Route

# Rounding to 8 bits costs each of the two products some 0.7 % of the norm, normally distributed over the results.
MOST_DIFFERENCE = 0.02
MOST_SINGLE_DIFFERENCE = 0.08  # of the root mean square
SEED = 1
SECONDS = 120  # ends what hangs
_MEMORY_BYTES = 64 << 20
_F32, _I32 = 0, 26  # enum ggml_type
COMMAND = child_process.command("tritgguf.runtime.engine.kernels.self_test")
_INTERRUPTIONS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL") if hasattr(signal, name)]

Floats = NDArray[np.float32]
Compute = Callable[[int, int], None]  # (graph, number of threads)


@dataclass(frozen=True)
class Shape:
    """Of a product: the weights are (n_rows, n_inputs), once or for each of the experts."""

    n_inputs: int
    n_rows: int
    n_tokens: int
    n_threads: int
    n_experts: int = 0

    def __str__(self) -> str:
        experts = f", {self.n_experts} experts" if self.n_experts else ""
        return f"{self.n_inputs} inputs, {self.n_rows} rows, {self.n_tokens} tokens{experts}"


# Few and many of each, sizes that fit no tile, one thread and a team, experts with one token and with many.
SHAPES = (
    Shape(256, 1, 1, 1),
    Shape(768, 37, 1, 2),
    Shape(512, 8, 2, 1),
    Shape(768, 67, 5, 1),
    Shape(2048, 130, 35, 2),
    Shape(256, 300, 129, 1),
    Shape(512, 40, 1, 2, n_experts=5),
    Shape(256, 33, 30, 2, n_experts=4),
)
N_CHOSEN = 2  # experts of a token


@dataclass(frozen=True)
class Case:
    """Weights, uint8 (rows of all experts, row bytes), activations (n_tokens, n_inputs), experts of each token."""

    type_number: int
    shape: Shape
    weights: NDArray[np.uint8]
    activations: Floats
    chosen: NDArray[np.int32] | None

    @property
    def last_token(self) -> Case:
        """The same weights with the last token only."""
        chosen = None if self.chosen is None else self.chosen[-1:]
        return replace(self, activations=self.activations[-1:], chosen=chosen)


@dataclass(frozen=True)
class Verdict:
    """Why the route isn't to be taken, None where it is; and whether that is so every time."""

    why_not: str | None
    lasting: bool = True


def run(libllama: str, route: Route) -> Verdict:
    """Test a route in a child process."""
    try:
        child = subprocess.run(
            [*COMMAND, libllama, route], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(f"the self-test didn't end: {type(error).__name__}", lasting=False)
    if child.returncode < 0:
        number = -child.returncode
        return Verdict(f"the self-test crashed (signal {number})", lasting=number not in _INTERRUPTIONS)
    try:
        why_not = json.loads(child.stdout)["why_not"]
    except (ValueError, KeyError, TypeError):
        lines = child.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason"]
        return Verdict(f"the self-test failed: {lines[-1]}", lasting=False)
    return Verdict(None if why_not is None else str(why_not))


def main() -> None:
    """Print the verdict as JSON."""
    libllama, name = sys.argv[1:]
    (route,) = (route for route in ROUTES if route == name)
    llama = ctypes.CDLL(libllama, ctypes.RTLD_GLOBAL)
    load_backends(llama, llama)
    print(json.dumps({"why_not": why_not(llama, route)}))


def why_not(libllama: ctypes.CDLL, route: Route) -> str | None:
    """Install a route in this process and return what is wrong with it, None where all products are right."""
    kernels, ggml = compiled.load(), GgmlFunctions(libllama)
    try:
        relu2.check_layout(libllama)
    except EngineError:
        return "llama.cpp's structures aren't the known ones"
    if kernels.kernels_tensor_bytes() != ctypes.sizeof(relu2.Tensor):
        return "the kernels were built for another llama.cpp"
    products = Products(ggml)
    refused = ROUTES[route](kernels, ggml)
    if refused is not None:
        return refused
    stock = OnDevice(ggml, CPU)
    ours = stock if route == "hook" else OnDevice(ggml, ACCELERATOR)
    for type_number, name in compiled.TYPES.items():
        for shape in SHAPES:
            if not kernels.product_supports(type_number, shape.n_inputs):
                continue
            case = products.random_case(type_number, shape)
            kernels.kernels_take_nodes(False)
            expected = products.compute(stock, case, shape.n_threads)
            kernels.kernels_take_nodes(True)
            before = kernels.kernels_products_computed()
            found = products.compute(ours, case, shape.n_threads)
            alone = products.compute(ours, case.last_token, shape.n_threads)
            what = f"{name} products of {shape}"
            if kernels.kernels_products_computed() != before + 2:
                return f"{what} don't reach the kernels"
            if not is_close(found, expected):
                return f"{what} differ from llama.cpp's"
            if alone.tobytes() != found[-len(alone) :].tobytes():
                return f"{what} have other bits than each token alone"
    return None


def is_close(found: Floats, expected: Floats) -> bool:
    """Whether two results, (n_columns, n_rows), differ by no more than rounding."""
    difference = np.abs(found.astype(np.float64) - expected)
    size = float(np.sqrt((expected.astype(np.float64) ** 2).mean()))
    root_mean_square = float(np.sqrt((difference**2).mean()))
    if expected.size < 64:  # too few to speak of a distribution
        return bool(difference.max() <= MOST_SINGLE_DIFFERENCE * max(size, 1.0))
    return root_mean_square <= MOST_DIFFERENCE * size and difference.max() <= MOST_SINGLE_DIFFERENCE * size


class Products:
    """Products of random weights, computed by graphs of one node."""

    def __init__(self, ggml: GgmlFunctions) -> None:
        pointer, integer, long, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
        self._init = ggml.function("ggml_init", pointer, InitParams)
        self._free = ggml.function("ggml_free", None, pointer)
        self._new = ggml.function("ggml_new_tensor_3d", pointer, pointer, integer, long, long, long)
        self._multiply = ggml.function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        self._multiply_experts = ggml.function("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
        self._new_graph = ggml.function("ggml_new_graph", pointer, pointer)
        self._expand = ggml.function("ggml_build_forward_expand", None, pointer, pointer)
        self._row_bytes = ggml.function("ggml_row_size", size, integer, long)
        self._block_bytes = ggml.function("ggml_type_size", size, integer)
        self._quantize = ggml.function(
            "ggml_quantize_chunk", size, integer, pointer, pointer, long, long, long, pointer
        )

    def random_case(self, type_number: int, shape: Shape) -> Case:
        """Return weights of a type, as ggml quantizes random floats, random activations and random experts."""
        rng, n_rows = np.random.default_rng(SEED), max(1, shape.n_experts) * shape.n_rows
        values = rng.standard_normal((n_rows, shape.n_inputs), np.float32)
        weights = np.zeros((n_rows, self._row_bytes(type_number, shape.n_inputs)), np.uint8)
        self._quantize(type_number, values.ctypes.data, weights.ctypes.data, 0, n_rows, shape.n_inputs, None)
        if type_number == compiled.Q2_0:  # all four codes, and scales of both signs
            blocks = weights.reshape(-1, self._block_bytes(type_number))
            blocks[:, 2:] = rng.integers(0, 256, blocks[:, 2:].shape, np.uint8)
            blocks[::3, 1] ^= 0x80
        activations = rng.standard_normal((shape.n_tokens, shape.n_inputs), np.float32)
        chosen = rng.permuted(np.tile(np.arange(shape.n_experts, dtype=np.int32), (shape.n_tokens, 1)), axis=1)
        return Case(type_number, shape, weights, activations, chosen[:, :N_CHOSEN] if shape.n_experts else None)

    def compute(self, how: Compute, case: Case, n_threads: int) -> Floats:
        """Return the products, (n_tokens, n_rows), or with experts (n_tokens · N_CHOSEN, n_rows)."""
        context, shape = self._init(InitParams(_MEMORY_BYTES, None, False)), case.shape
        try:
            weights = self._new(context, case.type_number, shape.n_inputs, shape.n_rows, max(1, shape.n_experts))
            n_tokens, pairs = len(case.activations), case.chosen
            _fill(weights, case.weights)
            if pairs is None:
                columns = self._new(context, _F32, shape.n_inputs, n_tokens, 1)
                product = self._multiply(context, weights, columns)
            else:
                columns = self._new(context, _F32, shape.n_inputs, 1, n_tokens)
                chosen = self._new(context, _I32, N_CHOSEN, n_tokens, 1)
                _fill(chosen, pairs)
                product = self._multiply_experts(context, weights, columns, chosen)
            _fill(columns, case.activations)
            graph = self._new_graph(context)
            self._expand(graph, product)
            how(graph, n_threads)
            n_results = n_tokens if pairs is None else pairs.size
            results = (ctypes.c_float * (n_results * shape.n_rows)).from_address(_data(product))
            return np.array(results, np.float32).reshape(n_results, shape.n_rows)
        finally:
            self._free(context)


class OnDevice:
    """Computes graphs on a device, as llama.cpp does."""

    def __init__(self, ggml: GgmlFunctions, kind: int | bytes) -> None:
        pointer, device = ctypes.c_void_p, Device(ggml, kind)
        self._backend = ggml.function("ggml_backend_dev_init", pointer, pointer, pointer)(device.address, None)
        self._compute = ggml.function("ggml_backend_graph_compute", ctypes.c_int, pointer, pointer)
        address = device.function(b"ggml_backend_set_n_threads") or 0
        self._set_threads: Any = ctypes.CFUNCTYPE(None, pointer, ctypes.c_int)(address)

    def __call__(self, graph: int, n_threads: int) -> None:
        self._set_threads(self._backend, n_threads)
        self._compute(self._backend, graph)


def _data(tensor: int) -> int:
    return relu2.Tensor.from_address(tensor).data or 0


def _fill(tensor: int, values: NDArray[Any]) -> None:
    contiguous = np.ascontiguousarray(values)
    ctypes.memmove(_data(tensor), contiguous.ctypes.data, contiguous.nbytes)
