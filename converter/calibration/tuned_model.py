"""A model with tuned scales, norms and biases in the place of those that gptq fitted or the checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tritgguf.converter.calibration.kept import CalibratedBlocks, CalibratedTensor, Kept
from tritgguf.converter.core.tensors import CodedRows, Float32Array, RowIndices, SourceTensor
from tritgguf.converter.gguf_io.metadata import uint32
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.calibration import TUNED_STEPS

WITH = "tuned with the scales"


@dataclass(frozen=True)
class TunedTensor(SourceTensor):
    """A norm or bias with other values, float32 (n,), than the checkpoint's tensor `original`."""

    original: SourceTensor
    values: Float32Array
    dtype = "F32"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.original.name

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.original.shape

    @property
    def n_bytes(self) -> int:
        return self.original.n_bytes

    @property
    def changed(self) -> str:
        return WITH

    def read(self, rows: slice | RowIndices) -> Float32Array:
        return self.values[None][rows]

    def require_unchanged(self) -> None:
        self.original.require_unchanged()


def originals(tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return the float model's tensors."""
    fitted = (CalibratedTensor, CalibratedBlocks)
    return {name: tensor.original if isinstance(tensor, fitted) else tensor for name, tensor in tensors.items()}


def as_fitted(model: Model, why: str) -> Model:
    """Return the model as gptq fitted it, with a note that tells why."""
    metadata = {**model.metadata, TUNED_STEPS: uint32(0)}
    return replace(model, metadata=metadata, notes=[*model.notes, f"--tune: {why}"])


def with_parts(model: Model, parts: Mapping[str, CodedRows | Float32Array | None], kept: Kept) -> Model | None:
    """Return the model with these codes and scales, norms and biases; None where one of them isn't finite."""
    assert model.tensors is not None
    tensors, packed = dict(model.tensors), {}
    for name, part in parts.items():
        layer = tensors[name]
        if isinstance(part, CodedRows) and isinstance(layer, CalibratedTensor):
            packed[name] = layer.codec.pack(part)
        elif isinstance(part, np.ndarray) and np.isfinite(part).all():
            tensors[name] = TunedTensor(layer, part)
        else:
            return None
    for name, stored in (kept.write(0, packed) if packed else {}).items():
        layer = tensors[name]
        assert isinstance(layer, CalibratedTensor)
        tensors[name] = replace(layer, stored=stored, how=f"{layer.how}, scales tuned")
    return replace(model, tensors=tensors)
