"""What a linear layer's fit needs to know of its inputs: sums over all tokens, gathered chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tritgguf.converter.calibration.blocks import Block

STRIP = 512  # rows of H that are added at once, from their diagonal on


@dataclass
class Moments:
    """Means over tokens, each with its weight: of xxᵀ, and of (f - x)xᵀ or (y - z)xᵀ; see `pull`.

    x are inputs of the quantized model and f those of the float model, y the residual stream of the float model behind
    the layer, and z that of the quantized one with the layer's own weights.
    """

    hessian: Tensor
    drift: Tensor | None
    behind: Tensor | None

    def to(self, device: torch.device) -> Moments:
        """Return them on a device."""
        drift, behind = (None if mean is None else mean.to(device) for mean in (self.drift, self.behind))
        return Moments(self.hessian.to(device), drift, behind)

    def pull(self, weights: Tensor) -> Tensor | None:
        """Return what gptq.corrected wants for a layer's weights; None where there is to be no correction."""
        return self.behind if self.drift is None else weights @ self.drift


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

    `names` are all of them. A layer that adds has inputs of its own.
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
        if adds and len(same) > 1:
            return None
        result_groups.append(Group(tuple(same), adds, tuple(added) if adds else ()))
        added += same if adds else []
    return result_groups


class Sums:
    """Adds up what `Moments` needs over chunks."""

    def __init__(self, group: Group, *, correction: bool, token_weights: bool) -> None:
        self.group, self.correction, self.token_weights = group, correction, token_weights and group.adds
        self.hessian: Tensor | None = None
        self.drift: Tensor | None = None
        self.behind: Tensor | None = None
        self.total: Tensor | float = 0.0

    def add(self, float_block: Block, block: Block, float_stream: Tensor, stream: Tensor) -> Tensor | None:
        """Add a chunk, given what the float and the quantized block get; the group's layers still have their weights.

        Return the float model's residual stream behind the layer if it adds to it and that was needed.
        """
        ours, theirs = _at(block, stream, self.group), None
        weights = ours.inputs.new_ones(len(ours.inputs), 1)
        if self.correction or self.token_weights:
            theirs = _at(float_block, float_stream, self.group)
            if self.token_weights:  # as the next norm divides by it
                weights = 1 / theirs.behind.square().mean(-1, keepdim=True).clamp_min(1e-6)
        weighted = ours.inputs * weights
        self.total = self.total + weights.sum()
        self.hessian = _added_square(self.hessian, ours.inputs, weighted)
        if self.correction and theirs is not None:
            if self.group.adds:
                self.behind = _added(self.behind, theirs.behind - ours.behind, weighted)
            else:
                self.drift = _added(self.drift, theirs.inputs - ours.inputs, weighted)
        return theirs.behind if theirs is not None and self.group.adds else None

    def moments(self) -> Moments:
        """Return the means."""
        assert self.hessian is not None
        upper = self.hessian.triu()
        means = [None if total is None else total / self.total for total in (self.drift, self.behind)]
        return Moments((upper + upper.triu(1).T) / self.total, *means)


class _At(NamedTuple):
    """A layer's inputs, and the residual stream with its outputs if it adds to it, each (n_tokens, n_features)."""

    inputs: Tensor
    behind: Tensor


def _at(block: Block, stream: Tensor, group: Group) -> _At:
    name, behind = group.names[0], stream
    if not group.adds:
        return _At(block.inputs(stream, name)[0], behind[0])
    seen = block.watch(stream, (*group.earlier, name))
    for one in (*group.earlier, name):
        behind = behind + seen[one].outputs
    return _At(seen[name].inputs[0], behind[0])


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left.T @ right if total is None else total.addmm_(left.T, right)


def _added_square(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add leftᵀ right, which is symmetric; what is below its diagonal stays incomplete."""
    n_columns = left.shape[-1]
    total = left.new_zeros(n_columns, n_columns) if total is None else total
    for start in range(0, n_columns, STRIP):
        total[start : start + STRIP, start:].addmm_(left[:, start : start + STRIP].T, right[:, start:])
    return total
