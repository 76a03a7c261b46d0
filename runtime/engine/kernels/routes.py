"""The two ways into an unmodified llama.cpp, both installed for the whole process; native/ tells how each works.

Each function returns None, or the reason why that way isn't open here. They read structures of ggml that its interface
doesn't promise, so they are called on the known version only, and first in a child process (self_test.py).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from tritgguf.runtime.engine.ggml_functions import GgmlFunctions
from tritgguf.runtime.engine.kernels import library as compiled

Route: TypeAlias = Literal["hook", "accel"]

CPU, ACCELERATOR = 0, b"Ternary"  # GGML_BACKEND_DEVICE_TYPE_CPU; the name in native/accel.cpp
# What the object of repacked weights begins with: the address behind two words of its class's virtual table.
_REPACK_TABLE = "_ZTVN4ggml3cpu6repack17extra_buffer_typeE"
_TABLE_HEADER_BYTES = 16
_THREADPOOL_FUNCTIONS = ("ggml_barrier", "ggml_threadpool_chunk_set", "ggml_threadpool_chunk_add")


def install_hook(kernels: ctypes.CDLL, ggml: GgmlFunctions) -> str | None:
    """Let the kernels answer for llama.cpp's extra buffer type of repacked weights."""
    listing = Device(ggml, CPU).function(b"ggml_backend_dev_get_extra_bufts")
    if listing is None:
        return "this llama.cpp has no extra buffer types to hook into"
    owner = GgmlFunctions(_library_of(listing))  # one of several for kinds of processors, in a build for all of them
    try:
        table, *addresses = (owner.address(name) for name in (_REPACK_TABLE, *_THREADPOOL_FUNCTIONS))
    except AttributeError:
        return "this llama.cpp doesn't export what the hook needs"
    expected = table + _TABLE_HEADER_BYTES
    matching = [
        extra for extra in _extra_buffer_types(ggml, listing) if kernels.kernels_virtual_table(extra) == expected
    ]
    if not matching:
        return "this llama.cpp has no extra buffer type to hook into"
    if not kernels.kernels_install_hook(matching[0], *addresses):
        return "the hook was installed before"
    return None


def install_accelerator(_kernels: ctypes.CDLL, ggml: GgmlFunctions) -> str | None:
    """Register the kernels as a device beside the CPU."""
    load = ggml.function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
    return None if load(os.fsencode(compiled.PATH)) else "llama.cpp doesn't load the kernels as a device"


ROUTES: dict[Route, Callable[[ctypes.CDLL, GgmlFunctions], str | None]] = {
    "hook": install_hook,
    "accel": install_accelerator,
}


class Device:
    """One of ggml's devices, and what its backend offers by name."""

    def __init__(self, ggml: GgmlFunctions, kind: int | bytes) -> None:
        """Find the first device of a kind, or the one of a name."""
        pointer = ctypes.c_void_p
        by, argument = ("type", ctypes.c_int) if isinstance(kind, int) else ("name", ctypes.c_char_p)
        self.address: int = ggml.function(f"ggml_backend_dev_by_{by}", pointer, argument)(kind)
        self._registry = ggml.function("ggml_backend_dev_backend_reg", pointer, pointer)(self.address)
        self._named = ggml.function("ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)

    def function(self, name: bytes) -> int | None:
        """Return the address of a function, None where the backend has none of that name."""
        address: int | None = self._named(self._registry, name)
        return address


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _library_of(function: int) -> ctypes.CDLL:
    """Return the loaded library that a function is in."""
    info = _SymbolInfo()
    ctypes.CDLL(None).dladdr(ctypes.c_void_p(function), ctypes.byref(info))
    return ctypes.CDLL(os.fsdecode(info.file))


def _extra_buffer_types(ggml: GgmlFunctions, listing: int) -> list[int]:
    """Return the addresses in the list, ended by a null, that the CPU device gives."""
    pointer = ctypes.c_void_p
    device = Device(ggml, CPU).address
    listed: Any = ctypes.cast(ctypes.CFUNCTYPE(pointer, pointer)(listing)(device), ctypes.POINTER(pointer))
    found: list[int] = []
    while listed and listed[len(found)]:
        found.append(listed[len(found)])
    return found
