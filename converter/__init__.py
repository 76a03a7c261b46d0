"""Convert Hugging Face checkpoints to GGUF files with ternary tensors: exact, or it says so.

>>> from tritgguf.converter import convert
>>> convert("model/", "out.gguf", type="tq2_0")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tritgguf.converter.errors import (
    CacheError,
    EngineError,
    OllamaError,
    OutputError,
    SourceError,
    TensorError,
    TokenizerError,
    TritggufError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tritgguf.converter.checkpoint.packings.base3 import unpack_base3
    from tritgguf.converter.conversion.pipeline import Conversion, convert, plan
    from tritgguf.converter.export.run import Quantization, form_named, plan_quantization, quantize
    from tritgguf.converter.planning.file_plan import FilePlan, TensorPlan

__all__ = [
    "CacheError",
    "Conversion",
    "EngineError",
    "FilePlan",
    "OllamaError",
    "OutputError",
    "Quantization",
    "SourceError",
    "TensorError",
    "TensorPlan",
    "TokenizerError",
    "TritggufError",
    "UnsupportedError",
    "convert",
    "form_named",
    "plan",
    "plan_quantization",
    "quantize",
    "unpack_base3",
]
_HOMES = {
    "Conversion": "conversion.pipeline",
    "FilePlan": "planning.file_plan",
    "Quantization": "export.run",
    "TensorPlan": "planning.file_plan",
    "convert": "conversion.pipeline",
    "form_named": "export.run",
    "plan": "conversion.pipeline",
    "plan_quantization": "export.run",
    "quantize": "export.run",
    "unpack_base3": "checkpoint.packings.base3",
}


def __getattr__(name: str) -> object:
    # Loaded when first used: numpy and gguf take longer to load than the command line's help to print.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
