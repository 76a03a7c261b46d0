"""The whole file as data, before it is written: what goes where, as which type, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tritgguf.converter.architecture import IGNORED, TensorSpec
from tritgguf.converter.codec import Codec, TernaryCodec, codec_named, codecs
from tritgguf.converter.errors import SourceError, TensorError, UnsupportedError
from tritgguf.converter.metadata import Metadata
from tritgguf.converter.model_config import DecoderConfig
from tritgguf.converter.tensors import FloatRows

ALIGNMENT = 32


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file: its spec, its type, and whether that holds it exactly.

    `exact` is None while the weights haven't been read; `on_grid` says that its values are ternary already.
    """

    spec: TensorSpec
    codec: Codec
    reason: str
    exact: bool | None = None
    on_grid: bool = False

    @property
    def n_bytes(self) -> int:
        *rows, n_columns = self.spec.shape
        return math.prod(rows) * self.codec.row_bytes(n_columns)

    def surveyed(self, exact: bool, reason: str, on_grid: bool = False) -> TensorPlan:
        """Return the plan as it is once the weights have been looked at."""
        return replace(self, exact=exact, reason=reason, on_grid=on_grid)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "type": self.codec.name,
            "shape": list(self.spec.shape),
            "bytes": self.n_bytes,
            "exact": self.exact,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class FilePlan:
    """The file: its header's bytes, its tensors in order, and what the user should know (`notes`)."""

    header: bytes
    tensors: tuple[TensorPlan, ...]
    notes: tuple[str, ...] = field(default=())

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

    def as_json(self) -> dict[str, Any]:
        return {
            "file_bytes": self.file_bytes,
            "tensors": [tensor.as_json() for tensor in self.tensors],
            "notes": list(self.notes),
        }


def aligned(n_bytes: int) -> int:
    """Return `n_bytes` rounded up to GGUF's alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class TypeChoice:
    """What the user asked for: the type of linear layers, and of those whose rows don't fit it (None: stop)."""

    codec: Codec
    fallback: Codec | None

    @classmethod
    def named(cls, type_name: str, fallback: str | None) -> TypeChoice:
        """Look both names up; raise UnsupportedError listing what there is."""
        choices = [codec.name for codec in codecs().values() if codec.for_linear]
        if type_name not in choices:
            raise UnsupportedError(f"unknown tensor type {type_name!r}; expected one of {', '.join(choices)}")
        if fallback not in (None, "f16"):
            raise UnsupportedError(f"unknown fallback {fallback!r}; expected f16")
        return cls(codec_named(type_name), codec_named(fallback) if fallback else None)


def plan_tensors(specs: Sequence[TensorSpec], choice: TypeChoice) -> tuple[TensorPlan, ...]:
    """Choose each tensor's type; raise TensorError where rows don't fit and no fallback was asked for."""
    return tuple(_plan_tensor(spec, choice) for spec in specs)


def _plan_tensor(spec: TensorSpec, choice: TypeChoice) -> TensorPlan:
    if spec.role in ("embedding", "output"):
        return TensorPlan(spec, codec_named("f16"), f"{spec.role}: F16")
    if spec.role != "linear":
        return TensorPlan(spec, codec_named("f32"), f"{spec.role}: F32")
    row_length, codec = spec.shape[-1], choice.codec
    if row_length % codec.block == 0:
        reason = "linear layer" if isinstance(codec, TernaryCodec) else f"linear layer: {codec.name.upper()} as asked"
        return TensorPlan(spec, codec, reason)
    if choice.fallback is None:
        raise TensorError(
            f"{spec.source}: rows of {row_length} values aren't a multiple of {codec.block}, which {codec.name} needs; "
            "add --fallback f16 to store such tensors as F16"
        )
    return TensorPlan(
        spec,
        choice.fallback,
        f"rows of {row_length} aren't a multiple of {codec.block}: fallback {choice.fallback.name}",
    )


def match_tensors(specs: Sequence[TensorSpec], found: Mapping[str, FloatRows], config: DecoderConfig) -> list[str]:
    """Check that the checkpoint holds what the graph needs and nothing else; return notes on what is left out."""
    needed = {spec.source: spec for spec in specs if spec.data is None}
    for name, spec in needed.items():
        if name not in found:
            raise SourceError(f"the checkpoint has no tensor {name}, which config.json calls for (shape {spec.shape})")
        if found[name].shape != spec.shape:
            raise SourceError(
                f"tensor {name} has the shape {found[name].shape}, but config.json calls for {spec.shape}: "
                "weights and config.json don't belong together"
            )
    left_out = [name for name in found if name not in needed and not IGNORED.search(name)]
    if config.tied and "lm_head.weight" in left_out:
        left_out.remove("lm_head.weight")
        notes = ["lm_head.weight is left out: config.json ties the output to the embeddings"]
    else:
        notes = []
    if left_out:
        raise UnsupportedError(
            f"the checkpoint holds {left_out[0]}, which llama.cpp's {config.architecture} graph has no place for "
            f"({len(left_out)} such tensors): leaving it out would give another model"
        )
    return notes


def with_metadata(keys: Metadata, *more: Metadata) -> Metadata:
    """Join metadata; a key that stands twice is a defect of this program."""
    joined = dict(keys)
    for part in more:
        if twice := joined.keys() & part.keys():
            raise ValueError(f"metadata keys written twice: {sorted(twice)}")
        joined.update(part)
    return joined
