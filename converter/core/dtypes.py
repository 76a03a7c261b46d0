"""The float types that checkpoints store, each under its four names, and how many bytes every stored type takes."""

from __future__ import annotations

from typing import NamedTuple


class FloatDtype(NamedTuple):
    """One float type of safetensors files.

    `words` is numpy's type of the unsigned words that hold its values, `in_config` its name in config.json, as PyTorch
    and transformers spell it, `codec` the name of the GGUF codec that writes it.
    """

    words: str
    item_bytes: int
    in_config: str
    codec: str


# By the name that safetensors gives the type. Compiled kernels know a type by its place in this order.
FLOAT_DTYPES = {
    "BF16": FloatDtype("<u2", 2, "bfloat16", "bf16"),
    "F16": FloatDtype("<u2", 2, "float16", "f16"),
    "F32": FloatDtype("<u4", 4, "float32", "f32"),
}
BY_NAME_IN_CONFIG = {dtype.in_config: name for name, dtype in FLOAT_DTYPES.items()}
BY_CODEC = {dtype.codec: name for name, dtype in FLOAT_DTYPES.items()}

# https://huggingface.co/docs/safetensors/index#format
ITEM_BYTES = {
    **{name: dtype.item_bytes for name, dtype in FLOAT_DTYPES.items()},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
