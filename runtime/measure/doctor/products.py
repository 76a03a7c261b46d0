"""The doctor's child process: what this build of llama.cpp is, and small products of every type on every device.

It prints one JSON object a line. Before each product it says which it is, since a product may end the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tritgguf.converter.errors import TritggufError
from tritgguf.converter.quant.codec import AnyCodec, codecs
from tritgguf.runtime.engine.devices import CPU, GPU, INTEGRATED_GPU, Device, all_devices
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels.self_test import Products, Shape, is_close
from tritgguf.runtime.measure.doctor.devices import Devices, Floats, UnsupportedProductError

N_INPUTS, N_ROWS = 2048, 1024
MANY = 32  # tokens: a prompt, beside the single token of an answer
_DIFFERENT_ROWS = 64  # quantizing takes longer than multiplying; the others repeat them


def main() -> None:
    """Print what there is and every product but those in the arguments, "DEVICE/TYPE"."""
    # Products end the process where they are broken; nobody needs a core file of that.
    _no_core_files()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        from tritgguf.runtime.engine import backend  # not at the top: it may fail, or end the process

        kernels = backend.cpu_kernels()
    except TritggufError as error:
        _say(event="failed", reason=str(error))
        return
    devices = Devices(backend.ggml(), extra_buffers=backend.EXTRA_BUFFERS)
    known = [device for device in all_devices(backend.ggml()) if device.kind in (CPU, GPU, INTEGRATED_GPU)]
    _say(
        event="build",
        system_info=backend.system_info(),
        cpu_kernels=str(kernels),
        own_kernels=kernels.route != "stock",
        amx_is_broken=not backend.EXTRA_BUFFERS,
        n_threads=default_threads(),
        devices=[{**dataclasses.asdict(device), "address": 0} for device in known],
    )
    makes = Products(backend.ggml())
    for device in known:
        for codec in codecs().values():
            if f"{device.name}/{codec.name}" not in sys.argv[1:]:
                _test(devices, device, codec, makes, own=kernels.route != "stock")
    _say(event="end")


def _test(devices: Devices, device: Device, codec: AnyCodec, makes: Products, *, own: bool) -> None:
    own = own and device.kind == CPU and compiled.load().product_supports(int(codec.ggml_type), N_INPUTS)
    what = {"device": device.name, "type": codec.name, "own_kernels": bool(own)}
    _say(event="start", **what)
    case = makes.random_case(int(codec.ggml_type), Shape(N_INPUTS, _DIFFERENT_ROWS, MANY, 1))
    expected = np.tile(_expected(codec, case.weights, case.activations), N_ROWS // _DIFFERENT_ROWS)
    weights = np.tile(case.weights, (N_ROWS // _DIFFERENT_ROWS, 1))
    rates, wrong = [], None
    for n_tokens in (1, MANY):
        inputs = case.activations[:n_tokens]
        try:
            found, seconds = _product(devices, device, codec, weights, inputs)
        except UnsupportedProductError:
            _say(event="elsewhere", **what)
            return
        if not (np.isfinite(found).all() and is_close(found, expected[:n_tokens])):
            wrong = _difference(found, expected[:n_tokens])
        rates.append(N_INPUTS * N_ROWS * n_tokens / seconds / 1e9)
    _say(event="result", **what, rates=rates, wrong=wrong)


def _product(devices: Devices, device: Device, codec: AnyCodec, weights: Any, inputs: Floats) -> tuple[Floats, float]:  # noqa: ANN401
    """Return a product and its seconds, at the first place that llama.cpp would take."""
    for place in devices.places(device):
        try:
            with devices.product(place, int(codec.ggml_type), weights, inputs) as product:
                return product.result(), product.seconds(_clock(device))
        except UnsupportedProductError:
            continue
    raise UnsupportedProductError


def _clock(device: Device) -> Callable[[], float]:
    """Return the processor's time for the CPU, whatever else keeps it busy; Windows counts that too coarsely."""
    return time.process_time if device.kind == CPU and sys.platform != "win32" else time.perf_counter


def _expected(codec: AnyCodec, weights: Any, inputs: Floats) -> Floats:  # noqa: ANN401
    """Return the products by numpy, (n_tokens, n_rows), of the values that our codec reads in the weights."""
    values = codec.dequantize(weights).astype(np.float64)
    return np.asarray(inputs.astype(np.float64) @ values.T, np.float32)


def _difference(found: Floats, expected: Floats) -> float:
    """Return the difference's norm by that of what was expected; infinite where a result is no number."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def _no_core_files() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)
