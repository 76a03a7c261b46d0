"""Recognize weights that the model's own code rounds each time it computes, which this package doesn't do.

Such are the repositories BitCPM-CANN-…-unquantized: their cards say that the weights are latent ones and that
modeling.py holds the fake quantizer (https://huggingface.co/openbmb/BitCPM-CANN-1B-unquantized).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path

from tritgguf.converter.core.tensors import CodedTensor, SourceTensor
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.quant.grids import find_grid

CODE = "modeling*.py"  # what config.json's auto_map loads
MAX_CODE = 1_000_000  # bytes
_FAKE_QUANTIZER = re.compile(rb"fake.?quant", re.IGNORECASE)
_REPOSITORY = re.compile(r"bitcpm.*-unquantized$", re.IGNORECASE)


def refuse_latents(folder: Path, tensors: Mapping[str, SourceTensor], linear: Container[str]) -> None:
    """Raise UnsupportedError where the folder's code or name says so and the weights aren't on a grid yet."""
    reason = _reason(folder)
    if reason is None:
        return
    first = next((tensor for name, tensor in tensors.items() if name in linear), None)
    if first is not None and not isinstance(first, CodedTensor) and find_grid(first) is None:
        raise UnsupportedError(
            f"{folder}: {reason}, and the weights are on no grid: the model rounds them as it computes, by a rule that "
            "isn't known here; expected the rounded weights: convert the repository without -unquantized, or merge "
            "the fake quantizers first"
        )


def _reason(folder: Path) -> str | None:
    for path in sorted(folder.glob(CODE)):
        with path.open("rb") as file:
            if _FAKE_QUANTIZER.search(file.read(MAX_CODE)):
                return f"{path.name} holds a fake quantizer"
    # In Hugging Face's cache, folders above the snapshot are named after the repository.
    if any(_REPOSITORY.search(name) for name in (folder.name, folder.absolute().parent.parent.name)):
        return "its name says that it is unquantized"
    return None
