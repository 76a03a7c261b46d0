"""ggml's own quantizers and dequantizers, called in the compiled library that llama-cpp-python ships."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

FLOATS = ctypes.POINTER(ctypes.c_float)


def library() -> ctypes.CDLL:
    """Load libggml-base from the installed llama_cpp package."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "lib"
    (path,) = [p for p in folder.iterdir() if p.name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")]
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, FLOATS,
    )  # fmt: skip
    return ggml


def type_facts(kind: GGMLQuantizationType) -> tuple[str, int, int]:
    """Return a tensor type's name in lower case, its block and the bytes of one, as ggml has them."""
    ggml = library()
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    name = ggml.ggml_type_name(kind.value).decode().lower()
    return name, ggml.ggml_blck_size(kind.value), ggml.ggml_type_size(kind.value)


def quantize(values: np.ndarray, kind: GGMLQuantizationType, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantize float32 rows with ggml; return bytes, shape (n_rows, row bytes).

    `importance` weighs the errors of the columns, (n_columns,).
    """
    n_rows, n_columns = values.shape
    block, block_bytes = GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(values, np.float32)
    stored = np.empty((n_rows, n_columns // block * block_bytes), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointer = None if weights is None else weights.ctypes.data_as(FLOATS)
    written = library().ggml_quantize_chunk(
        kind.value, source.ctypes.data_as(FLOATS), stored.ctypes.data, 0, n_rows, n_columns, pointer
    )
    assert written == stored.nbytes
    return stored


def dequantize(stored: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Dequantize bytes, shape (n_rows, row bytes), with ggml; return float32 rows."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    values = np.empty((len(stored), stored.shape[1] // block_bytes * block), np.float32)
    function = getattr(library(), f"dequantize_row_{kind.name.lower().replace('_k', '_K')}")
    function.argtypes = (ctypes.c_void_p, FLOATS, ctypes.c_int64)
    function.restype = None
    source = np.ascontiguousarray(stored)
    function(source.ctypes.data, values.ctypes.data_as(FLOATS), values.size)
    return values
