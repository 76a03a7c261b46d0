"""What the pipeline converts: the tensors that the file needs, where they come from, and the keys that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.tokenizer import SourceTokenizer


@dataclass(frozen=True)
class Model:
    """A model opened for conversion.

    `source` says in words how its weights lie. `tensors` is None where there are no weights, `tokenizer` where there
    is none; `metadata` holds every key but those that follow from the chosen types. `scale_tensors` says that the
    graph honours `.scale` tensors, `targets` what the file can run on at all, None for any.
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
