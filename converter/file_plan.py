"""The whole file as data, before it is written: what goes where, as which type, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tritgguf.converter.architecture import IGNORED, TensorSpec
from tritgguf.converter.codec import Codec
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.grids import Grid
from tritgguf.converter.metadata import Metadata
from tritgguf.converter.model_config import DecoderConfig
from tritgguf.converter.tensors import SourceTensor

ALIGNMENT = 32


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file: its spec, its type, why, and whether that holds it exactly.

    `exact` is None where there are no weights to tell from. `grid` is set where the values' own codes are stored;
    without it a ternary type gets them from a method. With `unit_scale` the blocks' scales are 1: a `.scale` tensor
    holds it. `error` is the relative error on a sample of rows, where it was measured.
    """

    spec: TensorSpec
    codec: Codec
    reason: str
    exact: bool | None = None
    grid: Grid | None = None
    unit_scale: bool = False
    fallback: bool = False
    error: float | None = None

    @property
    def n_bytes(self) -> int:
        *rows, n_columns = self.spec.shape
        return math.prod(rows) * self.codec.row_bytes(n_columns)

    @property
    def rounded(self) -> bool:
        """Whether a method made the values ternary."""
        return self.exact is False and self.grid is None and self.codec.ternary

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "type": self.codec.name,
            "shape": list(self.spec.shape),
            "bytes": self.n_bytes,
            "exact": self.exact,
            "reason": self.reason,
            "relative_error": self.error,
        }


@dataclass(frozen=True)
class FilePart:
    """One file: its header's bytes and its tensors in order."""

    header: bytes
    tensors: tuple[TensorPlan, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Return where each tensor starts in the file, and at last where the file ends; all multiples of 32."""
        ends = [aligned(len(self.header))]
        for tensor in self.tensors:
            ends.append(ends[-1] + aligned(tensor.n_bytes))
        return tuple(ends)

    @property
    def file_bytes(self) -> int:
        return self.offsets[-1]


@dataclass(frozen=True)
class FilePlan:
    """What is written: one file, or the parts of a split one, and what the user should know (`notes`)."""

    parts: tuple[FilePart, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def file_bytes(self) -> int:
        """Return the size of the file, or of all parts together."""
        return sum(part.file_bytes for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "file_bytes": self.file_bytes,
            **({"part_bytes": [part.file_bytes for part in self.parts]} if len(self.parts) > 1 else {}),
            "tensors": [tensor.as_json() for tensor in self.tensors],
            "notes": list(self.notes),
        }


def aligned(n_bytes: int) -> int:
    """Return `n_bytes` rounded up to GGUF's alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def match_tensors(
    specs: Sequence[TensorSpec], found: Mapping[str, SourceTensor], config: DecoderConfig
) -> tuple[dict[str, SourceTensor], list[str]]:
    """Check that the checkpoint holds what the graph needs and nothing else; return that, and notes on the rest."""
    needed = {spec.source: spec for spec in specs if spec.data is None}
    matched: dict[str, SourceTensor] = {}
    for name, spec in needed.items():
        if name not in found:
            raise SourceError(f"the checkpoint has no tensor {name}, which config.json calls for (shape {spec.shape})")
        fitted = found[name].fitted(spec.shape)
        if fitted is None:
            raise SourceError(
                f"tensor {name} has the shape {found[name].shape}, but config.json calls for {spec.shape}: "
                "weights and config.json don't belong together"
            )
        matched[name] = fitted
    left_out = [name for name in found if name not in needed and not IGNORED.search(name)]
    notes = []
    if config.tied and "lm_head.weight" in left_out:
        left_out.remove("lm_head.weight")
        notes.append("lm_head.weight is left out: config.json ties the output to the embeddings")
    if left_out:
        raise UnsupportedError(
            f"the checkpoint holds {left_out[0]}, which llama.cpp's {config.architecture} graph has no place for "
            f"({len(left_out)} such tensors): leaving it out would give another model"
        )
    return matched, notes


def with_metadata(keys: Metadata, *more: Metadata) -> Metadata:
    """Join metadata; a key that stands twice is a defect of this program."""
    joined = dict(keys)
    for part in more:
        if twice := joined.keys() & part.keys():
            raise ValueError(f"metadata keys written twice: {sorted(twice)}")
        joined.update(part)
    return joined
