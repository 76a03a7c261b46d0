"""What the pickle of a PyTorch state dict may name, and what each name stands for here.

These are the names that torch.save writes for plain tensors, and no others. Each function checks its arguments and
returns a description; nothing of torch is called. The functions that they stand for:
https://github.com/pytorch/pytorch/blob/main/torch/_utils.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_DIMENSIONS = 8


class Storage(NamedTuple):
    """The numbers behind one or more tensors; `dtype` is None where each tensor says it, and `n_items` are bytes."""

    key: str
    dtype: str | None
    n_items: int


class PickledTensor(NamedTuple):
    """A tensor as a view of a storage; `offset` and `strides` count items."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StorageType(NamedTuple):
    """Stands for a class of storages."""

    dtype: str | None


class Dtype(NamedTuple):
    """Stands for a dtype of torch."""

    dtype: str


class PickledTensorError(ValueError):
    """Tells what is wrong with a tensor; other errors of unpacking its arguments are plain ValueErrors."""


class Function(NamedTuple):
    """Stands for a function of torch: `build` describes what it would return, or raises ValueError."""

    build: Callable[[tuple[Any, ...]], object]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise PickledTensorError("an OrderedDict made of something")
    return {}


def _tensor_v2(arguments: tuple[Any, ...]) -> PickledTensor:
    storage, offset, shape, strides, _, hooks, *metadata = arguments
    return _tensor(storage, getattr(storage, "dtype", None), offset, shape, strides, hooks, metadata)


def _tensor_v3(arguments: tuple[Any, ...]) -> PickledTensor:
    storage, offset, shape, strides, _, hooks, dtype, *metadata = arguments
    if type(dtype) is not Dtype:
        raise PickledTensorError("a dtype that is none")
    return _tensor(storage, dtype.dtype, offset, shape, strides, hooks, metadata)


def _tensor(
    storage: object, dtype: str | None, offset: object, shape: object, strides: object, hooks: object, metadata: object
) -> PickledTensor:
    if type(storage) is not Storage or dtype is None:
        raise PickledTensorError("a storage that is none")
    if storage.dtype not in (None, dtype):
        raise PickledTensorError(f"a storage of {storage.dtype} seen as {dtype}")
    if hooks != {} or metadata not in ([], [None], [{}]):
        raise PickledTensorError("hooks or metadata, which change its values")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise PickledTensorError("a shape that doesn't fit its strides")
    if len(shape) > MAX_DIMENSIONS:
        raise PickledTensorError(f"{len(shape)} dimensions")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise PickledTensorError("an offset, a shape or strides that aren't whole numbers from zero up")
    return PickledTensor(storage, dtype, numbers[0], shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> PickledTensor:
    tensor, _, hooks = arguments
    if type(tensor) is not PickledTensor or hooks != {}:
        raise PickledTensorError("a parameter that is no tensor")
    return tensor


_TYPED = {
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Double": "F64",
    "Byte": "U8",
    "Char": "I8",
    "Short": "I16",
    "Int": "I32",
    "Long": "I64",
    "Bool": "BOOL",
}
_DTYPES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "bool": "BOOL"},
    **{"uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint16": "U16", "uint32": "U32", "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
GLOBALS: Mapping[str, object] = {
    "collections.OrderedDict": Function(_ordered_dict),
    "torch._utils._rebuild_tensor_v2": Function(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Function(_tensor_v3),
    "torch._utils._rebuild_parameter": Function(_parameter),
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in _TYPED.items()},
    "torch.storage.UntypedStorage": StorageType(None),
    **{f"torch.{name}": Dtype(dtype) for name, dtype in _DTYPES.items()},
}
