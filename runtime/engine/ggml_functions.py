"""ggml's functions, called with types of our own: those of the library's attributes belong to its other users."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any


class InitParams(ctypes.Structure):
    """What ggml_init() takes, struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GgmlFunctions:
    """The functions of a loaded library and of those that it needs."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def address(self, name: str) -> int:
        """Return the address of a function or a variable; raise AttributeError where the library has none such."""
        return ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value or 0

    def function(self, name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
        """Return a function; raise AttributeError where the library has none of that name."""
        return ctypes.CFUNCTYPE(result, *arguments)(self.address(name))
