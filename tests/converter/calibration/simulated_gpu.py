"""A device of torch's that computes on the CPU and is as strict as a GPU, and conversions on it in their own process.

`python -m tests.converter.calibration.simulated_gpu MODEL TEXT FOLDER` converts there, then on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.converter.calibration.test_tune import make_small
from tritgguf.converter import convert
from tritgguf.converter.calibration import blocks, fit

KIND = "simulated"
_COPY = torch.ops.aten.copy_.default
_COPIES = (torch.ops.aten._to_copy.default, _COPY)
_ATTENTION = torch.ops.aten._fused_sdp_choice.default


class OnGpu(torch.Tensor):
    """A tensor of the device; `held` has its values. It has no memory that the CPU could read, as by numpy()."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device(KIND, 0), **layout)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """Lets operations make tensors on the device. Torch is told of it once in a process, before any gradient."""

    def __init__(self) -> None:
        super().__init__()
        _setup_privateuseone_for_python_backend(KIND)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what was asked of either device.

    Raises RuntimeError for an operation on tensors of both that isn't a copy, as CUDA does; numbers may come from the
    CPU. Raises TypeError for float64 on the device, as MPS does.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    kinds = {isinstance(tensor, OnGpu) for tensor in tensors if tensor.dim()}
    if len(kinds) > 1 and function not in _COPIES:
        raise RuntimeError(f"{function} of tensors of two devices")
    if function is _ATTENTION:
        return SDPBackend.MATH.value
    if function is _COPY:
        there = isinstance(args[0], OnGpu)
    elif kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == KIND
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        there = any(isinstance(tensor, OnGpu) for tensor in tensors)
    result = function(*_mapped(lambda one: one.held, OnGpu, args), **_mapped(lambda one: one.held, OnGpu, kwargs))
    if not there:
        return result
    if any(isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in tree_leaves(result)):
        raise TypeError(f"{function} makes float64")
    return return_and_correct_aliasing(function, args, kwargs, _mapped(OnGpu, torch.Tensor, result))


def _mapped(change: Callable[[Any], Any], kind: type, values: Any) -> Any:
    return tree_map(lambda value: change(value) if isinstance(value, kind) else value, values)


def main(model: Path, text: Path, folder: Path) -> None:
    def converted(name: str) -> None:
        options = {"calibration": [text], "calibration_chunks": 2, "tune": 2, "tensor_type": ["ffn_down=q2_k"]}
        convert(model, folder / name, "q2_0", method="gptq", threads=1, check=False, told=print, **options)

    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(blocks, "_has_bfloat16", lambda: False)  # which only the CPU would compute with
        with patch.context() as on_gpu, Gpu():
            on_gpu.setattr(blocks, "best_device", lambda: torch.device(KIND, 0))
            converted("gpu.gguf")
            on_gpu.setattr(fit, "CANNOT_SOLVE", (KIND,))
            converted("gpu-that-cannot-solve.gguf")
        with sdpa_kernel(SDPBackend.MATH):
            converted("cpu.gguf")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
