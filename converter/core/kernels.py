"""Compiled loops: what numpy does in several passes over memory, the C in native/ does in one.

A kernel stands beside the numpy code that it replaces and gives the same bytes. Numpy does the work where the library
wasn't built, for want of a compiler, or where its source has changed since. The variable TRITGGUF_KERNELS overrides
this: `numpy` never calls kernels, `compiled` insists on them.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.errors import UnsupportedError

VARIABLE = "TRITGGUF_KERNELS"
MODES = ("auto", "numpy", "compiled")
WORDS = "words"  # an array of words of the kind in the next argument, its place in KINDS
KINDS = tuple(FLOAT_DTYPES)
PACKINGS = ("codes", "base-3", "four rows")

Argument = npt.NDArray[Any] | int | float


class Kernel:
    """A function of native/loops.h; its parameters are `int`, `float`, WORDS, or a dtype for an array of that."""

    def __init__(self, name: str, *arguments: type | str) -> None:
        self.name = name
        self.dtypes = [None if kind in (int, float, WORDS) else np.dtype(kind) for kind in arguments]
        self.argtypes = [
            ctypes.c_int64 if kind is int else ctypes.c_float if kind is float else ctypes.c_void_p
            for kind in arguments
        ]
        self.function: Any = None

    def __call__(self, *arguments: Argument) -> int | None:
        """Run it over contiguous arrays, some of which it fills, and return its result; None where there is none."""
        how = mode()
        if how == "numpy":
            return None
        found = library()
        if found is None and how == "compiled":
            raise UnsupportedError(
                f"{VARIABLE} is compiled, but the kernels weren't built, or not of the source beside them: "
                "install tritgguf again where there is a C compiler"
            )
        if found is None:
            return None
        if self.function is None:
            function = found[f"{self.name}_{found.level()}"]
            function.argtypes, function.restype = self.argtypes, ctypes.c_int64
            self.function = function  # last, since another thread may call it at once
        passed = [self._address(*pair) for pair in zip(arguments, self.dtypes, strict=True)]
        result: int = self.function(*passed)
        return result

    def _address(self, argument: Argument, dtype: np.dtype[Any] | None) -> int | float:
        if not isinstance(argument, np.ndarray):
            return argument
        if dtype not in (None, argument.dtype) or not argument.flags.c_contiguous:
            raise TypeError(f"{self.name}: found an array of {argument.dtype}, expected a contiguous one of {dtype}")
        return argument.ctypes.data


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, or None where there is none that was built of the source beside it, if that is there."""
    folder = Path(__file__).parent
    changed = [source.stat().st_mtime for source in (folder / "native").glob("*.[ch]")]
    for suffix in EXTENSION_SUFFIXES:
        built = folder / f"_kernels{suffix}"
        if built.exists():
            return ctypes.CDLL(str(built)) if built.stat().st_mtime > max(changed, default=0) else None
    return None


def available() -> bool:
    """Whether kernels do the work, not numpy."""
    return mode() != "numpy" and library() is not None


def mode() -> str:
    """Return how kernels are used; raise UnsupportedError where the variable says something else."""
    chosen = os.environ.get(VARIABLE, MODES[0])
    if chosen not in MODES:
        raise UnsupportedError(f"{VARIABLE} is {chosen!r}; expected one of {', '.join(MODES)}")
    return chosen
