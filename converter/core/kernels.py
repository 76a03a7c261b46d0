"""Compiled loops: the C in native/ does in one pass over memory what numpy does in several.

Each kernel has numpy code beside it that returns the same bytes. The numpy code runs if the library wasn't built, for
lack of a compiler, or if its source has changed since the build. The environment variable TRITGGUF_KERNELS overrides
this: `numpy` never calls kernels, `compiled` raises an error if there are none.
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

FILE = f"_kernels{EXTENSION_SUFFIXES[-1]}"  # the suffix that tells no version of Python
VARIABLE = "TRITGGUF_KERNELS"
MODES = ("auto", "numpy", "compiled")
WORDS = "words"  # an array of stored floats; the next argument gives their kind, an index into KINDS
KINDS = tuple(FLOAT_DTYPES)
PACKINGS = ("codes", "base-3", "four rows", "fours", "quarters")

Argument = npt.NDArray[Any] | int | float


class Kernel:
    """A function of `native`; each parameter is `int`, `float`, WORDS, or the dtype of an array."""

    def __init__(self, name: str, *arguments: type | str) -> None:
        self.name = name
        self.dtypes = [None if kind in (int, float, WORDS) else np.dtype(kind) for kind in arguments]
        self.argtypes = [
            ctypes.c_int64 if kind is int else ctypes.c_float if kind is float else ctypes.c_void_p
            for kind in arguments
        ]
        self.function: Any = None

    def __call__(self, *arguments: Argument) -> int | None:
        """Run the function on contiguous arrays, some of which it fills, and return its result.

        Return None if numpy has to do the work. Raise UnsupportedError if TRITGGUF_KERNELS demands kernels that aren't
        built, TypeError if an array has another dtype or isn't contiguous.
        """
        how = mode()
        if how == "numpy":
            return None
        found = library()
        if found is None and how == "compiled":
            raise UnsupportedError(
                f"{VARIABLE} is compiled, but the kernels are missing or older than their source: "
                "install a C compiler and then tritgguf again"
            )
        if found is None:
            return None
        if self.function is None:
            function = found[f"{self.name}_{found.level()}"]
            function.argtypes, function.restype = self.argtypes, ctypes.c_int64
            self.function = function  # last: another thread calls the function as soon as it is set
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
    """Return the compiled library; None if it wasn't built, or if a C source is newer (a wheel contains none)."""
    folder = Path(__file__).parent
    changed = [source.stat().st_mtime for source in (folder / "native").glob("*.[ch]")]
    built = folder / FILE
    if not built.exists() or built.stat().st_mtime <= max(changed, default=0):
        return None
    return ctypes.CDLL(str(built))


def available() -> bool:
    """Whether kernels run, not their numpy code."""
    return mode() != "numpy" and library() is not None


def mode() -> str:
    """Return the value of TRITGGUF_KERNELS, "auto" by default; raise UnsupportedError if it is none of MODES."""
    chosen = os.environ.get(VARIABLE, MODES[0])
    if chosen not in MODES:
        raise UnsupportedError(f"{VARIABLE} is {chosen!r}; expected one of {', '.join(MODES)}")
    return chosen
