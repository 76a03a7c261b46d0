"""Our CPU kernels in the real llama.cpp: logits against its own kernels' and against F16 weights."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import tritgguf.runtime
from tests import bitnet_model
from tests.kernel_session import after_ctrl_c, held_out_tokens, one_by_one
from tests.paths import ROOT
from tritgguf.converter import convert
from tritgguf.runtime.engine import backend
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels.routes import CPU
from tritgguf.runtime.engine.kernels.self_test import OnDevice, Products, Shape, is_close
from tritgguf.runtime.engine.relu2 import Tensor

DEMO = ROOT / "vendor" / "demo-model"
TYPES = {"tq1_0": compiled.TQ1_0, "tq2_0": compiled.TQ2_0, "q2_0": compiled.Q2_0, "q2_k": compiled.Q2_K}
N_LAYERS, LAYER_PRODUCTS, N_INPUTS = 8, 7, 256
on_cpu_alone = partial(tritgguf.runtime.open, n_gpu_layers=0)
# Each kernel rounds activations to 8 bits in its own way; logits nearer than this may change places.
RELATIVE_ERROR, ROUNDING = 0.03, 0.1
IDS = held_out_tokens()

pytestmark = pytest.mark.skipif(not compiled.PATH.exists(), reason="the kernels weren't built")


@pytest.fixture(scope="module")
def kernels():
    """The library, hooked into this process's llama.cpp."""
    found = backend.cpu_kernels()
    assert found.route == "hook", found
    return compiled.load()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the demo model's file in a tensor type, written once."""
    folder = tmp_path_factory.mktemp("demo")

    def file(type_name: str) -> Path:
        path = folder / f"{type_name}.gguf"
        if not path.exists():
            convert(DEMO, path, type=type_name, check=False)
        return path

    return file


@pytest.fixture(params=TYPES)
def type_name(request: pytest.FixtureRequest, kernels) -> str:
    if not kernels.product_supports(TYPES[request.param], N_INPUTS):
        pytest.skip("not among the types that are computed on this processor")
    return request.param


@contextmanager
def llama_cpps_own(kernels) -> Iterator[None]:
    kernels.kernels_take_nodes(False)
    try:
        yield
    finally:
        kernels.kernels_take_nodes(True)


def logits(path: Path) -> np.ndarray:
    with on_cpu_alone(path, n_threads=2) as session:
        return session.logits(IDS)


def n_products(kernels) -> int:
    """Return how many products of an evaluation of the demo model are ours; its output layer is F16."""
    return N_LAYERS * LAYER_PRODUCTS + kernels.product_supports(compiled.F16, N_INPUTS)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_same_choice(found: np.ndarray, expected: np.ndarray) -> None:
    """Assert that the most probable tokens are the same ones, or as probable but for rounding."""
    chosen, best = found.argmax(axis=1), expected.max(axis=1)
    assert (best - expected[np.arange(len(expected)), chosen] <= ROUNDING).all()
    assert (chosen == expected.argmax(axis=1)).mean() >= 0.9


def divergence(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence from the expected distributions, in nats."""
    logs = []
    for values in (found.astype(np.float64), expected.astype(np.float64)):
        values = values - values.max(axis=1, keepdims=True)
        logs.append(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[1]) * (logs[1] - logs[0])).sum(axis=1).mean())


def test_logits_are_those_of_llama_cpps_own_kernels(type_name, kernels, demo):
    with llama_cpps_own(kernels):
        expected = logits(demo(type_name))
    before = kernels.kernels_products_computed()
    found = logits(demo(type_name))
    assert kernels.kernels_products_computed() - before == n_products(kernels)
    assert relative_error(found, expected) <= RELATIVE_ERROR
    assert_same_choice(found, expected)
    with on_cpu_alone(demo(type_name), n_threads=1) as session:
        alone = one_by_one(session, IDS)
    assert relative_error(alone, expected) <= RELATIVE_ERROR
    assert_same_choice(alone, expected)


def test_nothing_is_lost_against_f16_weights(type_name, kernels, demo):
    exact = logits(demo("f16"))
    with llama_cpps_own(kernels):
        stock = divergence(logits(demo(type_name)), exact)
    assert divergence(logits(demo(type_name)), exact) <= 1.1 * stock + 1e-5


@pytest.mark.parametrize(
    "shape",
    [Shape(256, 33, 70, 1), Shape(768, 100, 9, 3), Shape(2048, 64, 2, 3), Shape(512, 70, 40, 3, n_experts=7)],
    ids=str,
)
def test_a_token_has_the_same_bits_alone_and_among_others(type_name, kernels, shape):
    ggml = GgmlFunctions(backend.native._lib)
    products, on_cpu = Products(ggml), OnDevice(ggml, CPU)
    case = products.random_case(TYPES[type_name], shape)
    together = products.compute(on_cpu, case, shape.n_threads)
    each = len(together) // shape.n_tokens
    for index in range(shape.n_tokens):
        chosen = None if case.chosen is None else case.chosen[index : index + 1]
        one = replace(case, activations=case.activations[index : index + 1], chosen=chosen)
        alone = products.compute(on_cpu, one, 1)
        assert alone.tobytes() == together[each * index :][:each].tobytes(), f"token {index}"
    with llama_cpps_own(kernels):
        assert is_close(together, products.compute(on_cpu, case, shape.n_threads))


def test_ctrl_c_stops_an_evaluation_and_harms_nothing(type_name, kernels, demo):
    with on_cpu_alone(demo(type_name), n_threads=2) as session:
        session.evaluate(IDS)
        calm = session.context.logits()[-1].copy()
        for number in (1, 30):
            assert np.array_equal(after_ctrl_c(session, IDS, number), calm)


def test_contexts_in_several_threads_at_once(kernels, demo):
    expected = logits(demo("tq2_0"))
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: logits(demo("tq2_0"))}))
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[number], expected) for number in range(3))


@pytest.mark.parametrize("name", ["demo", "bitnet-b1.58"])
def test_as_an_accelerator_the_bits_are_those_of_the_hook(name, kernels, demo, tmp_path):
    """Also where llama.cpp evaluates node by node for a callback, as it does for BitNet 2B-4T's activation."""
    model = demo("tq2_0") if name == "demo" else bitnet_model.write_gguf(tmp_path / "bitnet.gguf", "tq2_0")
    ids, out = IDS if name == "demo" else bitnet_model.token_ids()[:20], tmp_path / "logits.npz"
    environment = {**os.environ, "TRITGGUF_CPU_KERNELS": "accel"}
    command = [sys.executable, "-m", "tests.kernel_session", str(model), str(out), "3", json.dumps(ids)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    before = kernels.kernels_products_computed()
    with np.load(out) as file, on_cpu_alone(model, n_threads=2) as session:
        assert ", by accel (" in str(file["kernels"])
        assert np.array_equal(file["at_once"], session.logits(ids))
        assert np.array_equal(file["one_by_one"], one_by_one(session, ids))
        assert int(file["n_products"]) >= kernels.kernels_products_computed() - before > len(ids)
        session.evaluate([0])
        session.evaluate(ids)
        assert np.array_equal(file["after_ctrl_c"], session.context.logits()[-1])


@pytest.mark.parametrize(("is_view", "n_products"), [(False, 1), (True, 0)])
def test_which_products_are_taken(is_view, n_products, kernels):
    """Columns over three axes are one matrix's; what isn't a leaf may be keys or values, and stays llama.cpp's."""
    ggml, pointer, size = GgmlFunctions(backend.native._lib), ctypes.c_void_p, ctypes.c_int64
    products, on_cpu = Products(ggml), OnDevice(ggml, CPU)
    case = products.random_case(compiled.TQ2_0, Shape(256, 24, 30, 2))
    view = ggml.function("ggml_view_tensor", pointer, pointer, pointer)
    new = ggml.function("ggml_new_tensor_4d", pointer, pointer, ctypes.c_int, *[size] * 4)
    context = ggml.function("ggml_init", pointer, InitParams)(InitParams(1 << 20, None, False))
    left, right = new(context, compiled.TQ2_0, 256, 24, 1, 1), new(context, 0, 256, 5, 3, 2)
    for tensor, values in ((left, case.weights), (right, case.activations)):
        ctypes.memmove(Tensor.from_address(tensor).data, values.ctypes.data, values.nbytes)
    graph = ggml.function("ggml_new_graph", pointer, pointer)(context)
    multiply = ggml.function("ggml_mul_mat", pointer, pointer, pointer, pointer)
    product = multiply(context, view(context, left) if is_view else left, right)
    ggml.function("ggml_build_forward_expand", None, pointer, pointer)(graph, product)
    before = kernels.kernels_products_computed()
    on_cpu(graph, 2)
    assert kernels.kernels_products_computed() - before == n_products
    found = np.array((ctypes.c_float * (30 * 24)).from_address(Tensor.from_address(product).data)).reshape(30, 24)
    ggml.function("ggml_free", None, pointer)(context)
    expected = products.compute(on_cpu, case, 1)
    assert is_close(found, expected)
    assert np.array_equal(found, expected) == (n_products == 1)


OTHER_PROGRAM = """
import ctypes, sys
import numpy as np
from llama_cpp import Llama, llama_cpp
llama_cpp._lib.ggml_backend_load_all()  # as llama.cpp's programs begin
model = Llama(sys.argv[1], n_ctx=64, n_threads=1, logits_all=True, verbose=False)
model.eval([int(word) for word in sys.argv[4:]])
kernels = ctypes.CDLL(sys.argv[2])
kernels.kernels_products_computed.restype = ctypes.c_int64
np.savez(sys.argv[3], logits=model.scores[: len(sys.argv) - 4], n_products=kernels.kernels_products_computed())
"""


def test_another_program_loads_the_library_by_ggml_backend_path(kernels, demo, tmp_path):
    out = tmp_path / "logits.npz"
    command = [sys.executable, "-c", OTHER_PROGRAM, str(demo("q2_0")), str(compiled.PATH), str(out), *map(str, IDS)]
    environment = {**os.environ, "GGML_BACKEND_PATH": str(compiled.PATH)}
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    with np.load(out) as file:
        assert int(file["n_products"]) == n_products(kernels)
        assert relative_error(file["logits"], logits(demo("q2_0"))) <= 5e-3  # its attention is in half precision
