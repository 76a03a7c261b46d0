"""Convert Hugging Face checkpoints to GGUF files with ternary tensors: exact, or it says so.

>>> from tritgguf.converter import convert
>>> convert("model/", "out.gguf", type="tq2_0")  # doctest: +SKIP
"""

from tritgguf.converter.errors import (
    EngineError,
    OllamaError,
    OutputError,
    SourceError,
    TensorError,
    TokenizerError,
    TritggufError,
    UnsupportedError,
)
from tritgguf.converter.pipeline import Conversion, convert, plan
from tritgguf.converter.plan import FilePlan, TensorPlan
from tritgguf.converter.quantize import Quantization, form_named, plan_quantization, quantize
from tritgguf.converter.sources.base3 import unpack as unpack_base3

__all__ = [
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
