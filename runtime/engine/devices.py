"""The devices that llama.cpp computes on, and which weights they multiply."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams

CPU, GPU, INTEGRATED_GPU, ACCELERATOR = range(4)  # enum ggml_backend_dev_type
# The targets of `convert --for` by the names of ggml's backends.
_TARGETS = {"CUDA": "cuda", "ROCm": "cuda", "HIP": "cuda", "Metal": "metal", "MTL": "metal", "Vulkan": "vulkan"}
_F32, _I32 = 0, 26  # enum ggml_type
_MEMORY_BYTES = 1 << 16  # of the tensors' descriptions
_N_TOKENS, _N_EXPERTS_USED = 512, 2  # of the products that a device is asked about


@dataclass(frozen=True)
class Device:
    """A device by its address: CPU, GPU, or what computes beside the CPU; `backend` is ggml's name for its kind."""

    address: int
    name: str
    description: str
    kind: int
    backend: str
    free_bytes: int
    total_bytes: int

    @property
    def target(self) -> str:
        """Return the target of `convert --for`; "any" where none is known."""
        return "cpu" if self.kind == CPU else _TARGETS.get(self.backend, "any")


def all_devices(ggml: GgmlFunctions) -> list[Device]:
    """Return every device that this build finds, in llama.cpp's order; none where ggml can't be asked."""
    try:
        count = ggml.function("ggml_backend_dev_count", ctypes.c_size_t)()
    except AttributeError:  # Windows finds its functions in other libraries
        return []
    get = ggml.function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return [described(ggml, get(number)) for number in range(count)]


def gpus(ggml: GgmlFunctions) -> list[Device]:
    """Return the GPUs that llama.cpp takes by itself: those of the processor only where there are no others."""
    found = all_devices(ggml)
    return [device for device in found if device.kind == GPU] or [
        device for device in found if device.kind == INTEGRATED_GPU
    ]


def described(ggml: GgmlFunctions, address: int) -> Device:
    """Return what llama.cpp tells of the device at an address."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    memory = ggml.function("ggml_backend_dev_memory", None, pointer, pointer, pointer)
    memory(address, ctypes.addressof(free), ctypes.addressof(total))
    registry = ggml.function("ggml_backend_dev_backend_reg", pointer, pointer)(address)
    asked = (("ggml_backend_dev_name", address), ("ggml_backend_dev_description", address))
    name, description, backend = (
        (ggml.function(function, text, pointer)(of) or b"").decode("utf-8", "replace").strip()
        for function, of in (*asked, ("ggml_backend_reg_name", registry))
    )
    kind = ggml.function("ggml_backend_dev_type", ctypes.c_int, pointer)(address)
    return Device(address, name, description, kind, backend, free.value, total.value)


def unsupported(ggml: GgmlFunctions, device: Device, weights: Iterable[tuple[int, tuple[int, ...]]]) -> set[int]:
    """Return the types that a device has no matrix product for, of weights given by ggml type and shape.

    Shapes are (rows, columns), or (experts, rows, columns). The device is asked as llama.cpp does when it chooses where
    weights go (weight_buft_supported in llama-model-loader.cpp).
    """
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    context = ggml.function("ggml_init", pointer, InitParams)(InitParams(_MEMORY_BYTES, None, True))
    new = ggml.function("ggml_new_tensor_3d", pointer, pointer, ctypes.c_int, long, long, long)
    product = ggml.function("ggml_mul_mat", pointer, pointer, pointer, pointer)
    of_experts = ggml.function("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
    supports = ggml.function("ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
    found = set()
    try:
        for number, shape in weights:
            *experts, n_rows, n_inputs = shape
            matrix = new(context, number, n_inputs, n_rows, experts[0] if experts else 1)
            if experts:
                inputs = new(context, _F32, n_inputs, _N_EXPERTS_USED, _N_TOKENS)
                node = of_experts(context, matrix, inputs, new(context, _I32, _N_EXPERTS_USED, _N_TOKENS, 1))
            else:
                node = product(context, matrix, new(context, _F32, n_inputs, _N_TOKENS, 1))
            if not supports(device.address, node):
                found.add(number)
    finally:
        ggml.function("ggml_free", None, pointer)(context)
    return found
