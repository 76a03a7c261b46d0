"""A model opened for conversion: the tensors that the file needs, where they come from, and the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.tokenizer import SourceTokenizer


@dataclass(frozen=True)
class Model:
    """A model opened for conversion.

    `source` describes the packing, None where it isn't known. `tensors` maps `TensorSpec.source` to the stored tensor,
    None where there are no weights; `tokenizer` is None where there is none. `metadata` holds every key but those that
    depend on the chosen types. `scale_tensors` tells whether the graph multiplies by `.scale` tensors; `targets` are
    the only targets that the file can run on, None for any. `file_type` is what a GGUF file calls its mix of types.
    `only_floats` is why only a float type that the user asks for will do, None where any type does. `unmerged` are the
    tensors that an adapter changes, without it.
    """

    path: Path
    source: str | None
    specs: list[TensorSpec]
    tensors: Mapping[str, SourceTensor] | None
    metadata: Metadata
    tokenizer: SourceTokenizer | None
    notes: list[str]
    scale_tensors: bool
    targets: tuple[str, ...] | None = None
    file_type: int | None = None
    only_floats: str | None = None
    unmerged: Mapping[str, SourceTensor] = field(default_factory=dict)
