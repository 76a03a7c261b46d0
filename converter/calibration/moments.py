"""What a linear layer's fit needs to know of its inputs: sums over all tokens, gathered chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tritgguf.converter.calibration.blocks import Block


@dataclass
class Moments:
    """Means over tokens, each with its weight: of xxᵀ, of (f - x)xᵀ and of (s - r)xᵀ; see gptq.corrected.

    x are inputs of the quantized model and f those of the float model, s and r the residual streams before the layer's
    output is added; None where they aren't needed.
    """

    hessian: Tensor
    drift: Tensor | None
    stream: Tensor | None


@dataclass(frozen=True)
class Group:
    """Linear layers of a block that get the same inputs, by name.

    `adds` tells whether their outputs are added to the residual stream, `earlier` are the layers of the block that were
    added before.
    """

    names: tuple[str, ...]
    adds: bool
    earlier: tuple[str, ...]


def groups(block: Block, stream: Tensor, names: list[str], adding: list[str]) -> list[Group] | None:
    """Return a block's linear layers in the order in which they run; None where the stream isn't the sum of `adding`.

    `names` are all of them.
    """
    seen = block.watch(stream, names, to_the_end=True)
    result = seen.pop("").outputs
    total = stream + sum(seen[name].outputs for name in adding)
    if len(seen) != len(names) or not torch.allclose(result, total, rtol=1e-3, atol=1e-3 * float(result.abs().max())):
        return None
    found: list[list[str]] = []
    for name, one in seen.items():
        if found and one.inputs is seen[found[-1][0]].inputs:
            found[-1].append(name)
        else:
            found.append([name])
    added: list[str] = []
    result_groups = []
    for same in found:
        adds = same[0] in adding
        result_groups.append(Group(tuple(same), adds, tuple(added) if adds else ()))
        added += same if adds else []
    return result_groups


class Sums:
    """Adds up what `Moments` needs over chunks."""

    def __init__(self, group: Group, *, correction: bool, token_weights: bool) -> None:
        self.group, self.correction, self.token_weights = group, correction, token_weights and group.adds
        self.hessian: Tensor | None = None
        self.drift: Tensor | None = None
        self.stream: Tensor | None = None
        self.total = 0.0

    def add(self, float_block: Block, block: Block, float_stream: Tensor, stream: Tensor) -> None:
        """Add a chunk, given what the float and the quantized block get."""
        ours = _at(block, stream, self.group)
        weights = torch.ones(len(ours.inputs), 1)
        if self.correction or self.token_weights:
            theirs = _at(float_block, float_stream, self.group)
            if self.token_weights:  # as the next norm divides by it, with the layer's own output
                weights = 1 / (theirs.before + theirs.outputs).square().mean(-1, keepdim=True).clamp_min(1e-6)
        weighted = ours.inputs * weights
        self.total += float(weights.sum())
        self.hessian = _added(self.hessian, ours.inputs, weighted)
        if self.correction:
            self.drift = _added(self.drift, theirs.inputs - ours.inputs, weighted)
            if self.group.adds:
                self.stream = _added(self.stream, theirs.before - ours.before, weighted)

    def moments(self) -> Moments:
        """Return the means."""
        means = [None if total is None else total / self.total for total in (self.hessian, self.drift, self.stream)]
        return Moments(*means)


class _At(NamedTuple):
    """A layer's inputs and outputs, and the residual stream before those are added, each (n_tokens, n_features)."""

    inputs: Tensor
    outputs: Tensor
    before: Tensor


def _at(block: Block, stream: Tensor, group: Group) -> _At:
    seen = block.watch(stream, (*group.earlier, group.names[0]))
    before = stream + sum(seen[name].outputs for name in group.earlier)
    return _At(*(tensor[0] for tensor in (*seen[group.names[0]], before)))


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left.T @ right if total is None else total.addmm_(left.T, right)
