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

__all__ = [
    "Conversion",
    "EngineError",
    "FilePlan",
    "OllamaError",
    "OutputError",
    "SourceError",
    "TensorError",
    "TensorPlan",
    "TokenizerError",
    "TritggufError",
    "UnsupportedError",
    "convert",
    "plan",
]
