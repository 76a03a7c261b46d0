"""Distillation of a float model into its quantized one: KL divergence on text, and its gradients block by block.

The forward pass keeps what each block got. The backward pass runs each block again, the last one first, so only one
block's weights, activations and gradients are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from tritgguf.converter.calibration.blocks import Block, Decoder
from tritgguf.converter.calibration.student import LAST_NORM, Student
from tritgguf.converter.calibration.text import Chunks

AT_ONCE = 4  # chunks that go through a block together
BACKWARD = 1.5  # times the work of both models' forward passes, since the student's block runs again


class Distillation:
    """Both models on the decoder's device. With `resident` the float model stays there, else blocks are read to run."""

    def __init__(self, decoder: Decoder, *, resident: bool | None = None) -> None:
        self.decoder, self.device = decoder, decoder.device
        self.resident = self.device.type != "cpu" if resident is None else resident
        self._on_device: dict[int, Block] = {}

    def divergence(self, student: Student, chunks: Chunks) -> float:
        """Return the mean KL divergence of the quantized model's predictions; the first position isn't counted."""
        total, n_predictions = 0.0, len(chunks) * int(chunks.shape[1] - 1)
        with torch.no_grad():
            for start in range(0, len(chunks), AT_ONCE):
                theirs, ours = self._forward(student, chunks[start : start + AT_ONCE], [])
                norm = student.norm.values()
                total += sum(float(self._divergence(student, *pair, norm)) for pair in zip(theirs, ours, strict=True))
        return total / n_predictions

    def gradients(self, student: Student, chunks: Chunks, tick: Callable[[float], None] = lambda _: None) -> float:
        """Add the gradients of the mean KL divergence to the student's changes, and return it.

        `tick` gets shares of the work.
        """
        inputs: list[Tensor] = []
        share = 1 / len(self.decoder) / (1 + BACKWARD)
        with torch.no_grad():
            theirs, ours = self._forward(student, chunks, inputs, lambda: tick(share))
        loss, gradient = self._back_from_logits(student, theirs, ours)
        for number in reversed(range(len(self.decoder))):
            gradient = self._back(student, number, inputs.pop(), gradient)
            tick(BACKWARD * share)
        return loss

    def _forward(
        self, student: Student, chunks: Chunks, inputs: list[Tensor], ended: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Return both models' residual streams behind the last block; append what the student's blocks got."""
        theirs = self.decoder.embedded(chunks).to(self.device)
        ours = functional.embedding(torch.from_numpy(chunks).to(self.device), student.embeddings)
        for number in range(len(self.decoder)):
            block = self._block(number)
            weights = {name: part.values() for name, part in student.blocks[number].items()}
            inputs.append(ours)
            theirs = torch.cat([block(some) for some in theirs.split(AT_ONCE)])
            ours = torch.cat([_with(block, weights, some) for some in ours.split(AT_ONCE)])
            ended()
        return theirs, ours

    def _back_from_logits(self, student: Student, theirs: Tensor, ours: Tensor) -> tuple[float, Tensor]:
        """Return the mean divergence, and its gradient at the residual stream."""
        n_predictions = len(ours) * (ours.shape[1] - 1)
        norm = student.norm.values()
        leaf = norm.detach().requires_grad_()
        total, gradients = 0.0, []
        for their, our in zip(theirs, ours, strict=True):
            our = our.requires_grad_()
            loss = self._divergence(student, their, our, leaf) / n_predictions
            (gradient, at_norm) = torch.autograd.grad(loss, (our, leaf))
            leaf.grad = at_norm if leaf.grad is None else leaf.grad + at_norm
            gradients.append(gradient)
            total += float(loss.detach())
        norm.backward(leaf.grad)
        return total, torch.stack(gradients)

    def _back(self, student: Student, number: int, stream: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient at what a block got, given that behind it."""
        block = self.decoder.empty_block(number)
        values = {name: part.values() for name, part in student.blocks[number].items()}
        leaves = {name: value.detach().requires_grad_(value.requires_grad) for name, value in values.items()}
        results = []
        for some, behind in zip(stream.split(AT_ONCE), gradient.split(AT_ONCE), strict=True):
            some = some.detach().requires_grad_()
            _with(block, leaves, some).backward(behind)
            results.append(some.grad)
        tuned = [name for name, value in values.items() if value.requires_grad]
        torch.autograd.backward([values[name] for name in tuned], [leaves[name].grad for name in tuned])
        return torch.cat([result for result in results if result is not None])

    def _divergence(self, student: Student, theirs: Tensor, ours: Tensor, norm: Tensor) -> Tensor:
        """Return the sum over a chunk's positions but the first of KL(float model, student)."""
        with torch.no_grad():
            targets = self.decoder.logits(theirs[1:], self._norm, self._head).log_softmax(-1)
        found = self.decoder.logits(ours[1:], norm, student.head).log_softmax(-1)
        return functional.kl_div(found, targets, log_target=True, reduction="sum")

    @cached_property
    def _norm(self) -> Tensor:
        return self.decoder.tensor(LAST_NORM).to(self.device)

    @cached_property
    def _head(self) -> Tensor:
        return self.decoder.tensor(self.decoder.head).to(self.device)

    def _block(self, number: int) -> Block:
        """Return the float model's block."""
        if number in self._on_device:
            return self._on_device[number]
        block = self.decoder.block(number)
        if self.resident:
            self._on_device[number] = block
        return block


def _with(block: Block, weights: Mapping[str, Tensor], stream: Tensor) -> Tensor:
    """Return the residual stream behind the block with these weights in place of its own."""
    result = functional_call(block.module, dict(weights), (stream,), dict(block.keywords))
    return result[0] if isinstance(result, tuple) else result


def batches(n_chunks: int, size: int, steps: int, seed: int) -> npt.NDArray[np.int64]:
    """Return which chunks each step takes, (steps, size): all of them in an order by chance, then all of them again."""
    random = np.random.default_rng(seed)
    rounds = -(-steps * size // n_chunks)
    order = np.concatenate([random.permutation(n_chunks) for _ in range(rounds)])
    return order[: steps * size].reshape(steps, size)
