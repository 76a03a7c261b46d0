"""The quantized model while it is tuned: its codes stay, its scales, norms and biases are parameters.

A parameter is what changes a stored value: scale = stored · (1 + change) · (1 + change of the row), norm =
stored · (1 + change), bias = stored + change. All changes are 0 at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tritgguf.converter.calibration.kept import CalibratedTensor
from tritgguf.converter.calibration.layers import BLOCKS
from tritgguf.converter.core.tensors import CodedRows, Float32Array, SourceTensor, row_chunks
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.quant.codec import TernaryCodec

SCALES, ROWS, NORMS, BIASES = "scales", "rows", "norms", "biases"  # kinds of changes, which have their own rates
LAST_NORM = "model.norm.weight"


@dataclass(frozen=True)
class Part:
    """A tensor of the model, and its changes by kind; none in a tensor that isn't tuned."""

    stored: Tensor
    changes: Mapping[str, Tensor]

    def values(self) -> Tensor:
        """Return what the model computes with, in the checkpoint's shape; gradients go to the changes."""
        value = self.stored
        for kind, change in self.changes.items():
            value = value + change if kind == BIASES else value * (1 + change)
        return value


@dataclass(frozen=True)
class CodedPart(Part):
    """A linear layer: `stored` are scales, (n_rows, n_groups), and `codes` int8, (n_rows, n_columns)."""

    codes: Tensor

    def scales(self) -> Tensor:
        """Return the scales, (n_rows, n_groups), not rounded."""
        return super().values()

    def values(self) -> Tensor:
        scales = self.scales()
        return (self.codes.unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)

    def rows(self) -> CodedRows | None:
        """Return codes and scales that fp16 holds, None where one is too large or not a number."""
        scales = self.scales().detach().half().float().cpu()
        if not bool(scales.isfinite().all()):
            return None
        group = self.codes.shape[1] // scales.shape[1]
        codes = self.codes.cpu() * (scales != 0).repeat_interleave(group, dim=1)
        return CodedRows(codes.numpy(), scales.numpy(), group)


class Student:
    """What a file of these plans stores of a model's tensors, by their names in the checkpoint.

    Raises TensorError where a tensor can't be stored.
    """

    def __init__(
        self, plans: Sequence[TensorPlan], tensors: Mapping[str, SourceTensor], n_blocks: int, device: torch.device
    ) -> None:
        own = {plan.spec.source: plan for plan in plans if plan.spec.data is None}
        ends = {plan.spec.role: plan for plan in own.values() if plan.spec.role in ("embedding", "output")}
        self.embeddings = _stored(ends["embedding"], tensors).to(device)
        self.head = _stored(ends["output"], tensors).to(device) if "output" in ends else self.embeddings
        self.parts = {
            name: _part(plan, tensors, device)
            for name, plan in own.items()
            if name.startswith(BLOCKS) or name == LAST_NORM
        }
        prefixes = [f"{BLOCKS}{number}." for number in range(n_blocks)]
        self.blocks = [
            {name.removeprefix(prefix): part for name, part in self.parts.items() if name.startswith(prefix)}
            for prefix in prefixes
        ]

    @property
    def norm(self) -> Part:
        """The norm behind the last block."""
        return self.parts[LAST_NORM]

    @property
    def n_linear_weights(self) -> int:
        return sum(part.codes.numel() for part in self.parts.values() if isinstance(part, CodedPart))

    def stored(self) -> dict[str, CodedRows | Float32Array | None]:
        """Return what a file stores of each tuned tensor: float32 values, or a linear layer's `rows`."""
        return {
            name: part.rows() if isinstance(part, CodedPart) else part.values().detach().cpu().numpy()
            for name, part in self.parts.items()
            if part.changes
        }

    def changes(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the kind of each change, and the change."""
        for part in self.parts.values():
            yield from part.changes.items()


def _part(plan: TensorPlan, tensors: Mapping[str, SourceTensor], device: torch.device) -> Part:
    tensor = tensors[plan.spec.source]
    if isinstance(tensor, CalibratedTensor) and isinstance(tensor.codec, TernaryCodec):
        rows = tensor.read_codes(slice(None))
        scales = torch.from_numpy(np.ascontiguousarray(rows.scales)).to(device)
        changes = {SCALES: _none_yet(scales), ROWS: _none_yet(scales[:, :1])}
        return CodedPart(scales, changes, torch.from_numpy(rows.codes).to(device))
    stored = _stored(plan, tensors).to(device)
    kinds = {"norm": NORMS, "bias": BIASES}
    kind = kinds.get(plan.spec.role)
    return Part(stored, {} if kind is None else {kind: _none_yet(stored)})


def _none_yet(like: Tensor) -> Tensor:
    return torch.zeros_like(like, requires_grad=True)


def _stored(plan: TensorPlan, tensors: Mapping[str, SourceTensor]) -> Tensor:
    """Return a tensor's values as the file has them, in the checkpoint's order of rows."""
    source, shape = tensors[plan.spec.source], plan.spec.shape
    values: Float32Array = np.empty((int(np.prod(shape[:-1])), shape[-1]), np.float32)
    for rows in row_chunks(shape):
        if plan.exact:
            values[rows] = source.read(rows)
        else:
            values[plan.encoder.source_rows(rows)] = plan.codec.decode(plan.encoder.encode(source, rows))
        source.evict(rows)
    return torch.from_numpy(values).reshape(shape)
