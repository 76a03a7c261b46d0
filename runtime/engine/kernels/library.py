"""The compiled library of our CPU kernels, built by native/CMakeLists.txt."""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path

PATH = Path(__file__).parent / "_kernels.so"
SOURCES = Path(__file__).parent / "native"

F16, Q8_0, Q2_K, Q6_K, TQ1_0, TQ2_0, Q2_0 = 1, 8, 10, 14, 34, 35, 42  # enum ggml_type
# By ggml's numbers; the library says which of them it computes here.
TYPES = {TQ1_0: "TQ1_0", TQ2_0: "TQ2_0", Q2_0: "Q2_0", Q2_K: "Q2_K", Q6_K: "Q6_K", Q8_0: "Q8_0", F16: "F16"}


class MissingError(Exception):
    """The library can't be used here; the message says why."""


@cache
def load() -> ctypes.CDLL:
    """Return the library; raise MissingError where it wasn't built, is of other sources or doesn't load."""
    if not PATH.exists():
        raise MissingError("tritgguf's weren't built: that needs a C++ compiler and llama.cpp's headers")
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise MissingError(f"tritgguf's can't be loaded: {error}") from error
    set_types(library)
    digest = source_digest()
    if digest not in (None, library.kernels_source_digest().decode()):
        raise MissingError("tritgguf's are of another source: build them again")
    return library


def source_digest() -> str | None:
    """Return the digest of the sources, as CMakeLists.txt makes it; None in a wheel, which has no sources."""
    sources = sorted(path for path in SOURCES.glob("*") if path.suffix in (".cpp", ".h"))
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources)
    return hashlib.sha256(digests.encode()).hexdigest() if sources else None


def set_types(library: ctypes.CDLL) -> None:
    """Tell ctypes the types of the library's functions."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("product_instructions", ctypes.c_char_p, ()),
        ("product_use", ctypes.c_bool, (ctypes.c_char_p,)),
        ("product_supports", ctypes.c_bool, (integer, ctypes.c_int64)),
        ("kernels_take_nodes", None, (ctypes.c_bool,)),
        ("kernels_products_computed", ctypes.c_int64, ()),
        ("kernels_tensor_bytes", ctypes.c_size_t, ()),
        ("kernels_source_digest", ctypes.c_char_p, ()),
        ("kernels_virtual_table", pointer, (pointer,)),
        ("kernels_install_hook", ctypes.c_bool, (pointer, pointer, pointer, pointer)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def instructions(library: ctypes.CDLL) -> str:
    """Return the instruction set that the library uses on this processor, "" where there is none for it."""
    name: bytes = library.product_instructions()
    return name.decode()
