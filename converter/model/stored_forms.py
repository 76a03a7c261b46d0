"""How a checkpoint stores a tensor of the model: under one name, as several tensors, or as a part of one.

Checkpoints of one class differ: transformers 4 writes each expert's matrices, transformers 5 can also write all experts
as one tensor, with the rows of gate_proj before those of up_proj in each matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from tritgguf.converter.core.stacks import Stack
from tritgguf.converter.core.tensors import RowIndices, RowsOf, SourceTensor
from tritgguf.converter.model.derived import MergedRows, PickedRows

Shape = tuple[int, ...]


class StoredForm(ABC):
    """One way of storing a tensor."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The names of the checkpoint's tensors that hold it."""

    @property
    def part_of(self) -> str | None:
        """The name of the checkpoint's tensor that it is a part of, where every checkpoint has just that one."""
        return None

    @abstractmethod
    def stored_shape(self, shape: Shape) -> Shape:
        """Return the shape that each stored tensor has where the model's tensor has `shape`."""

    @abstractmethod
    def assembled(self, name: str, shape: Shape, stored: Sequence[SourceTensor]) -> SourceTensor:
        """Return the model's tensor, called `name` in messages, from the stored ones, which have the right shape."""


@dataclass(frozen=True)
class Whole(StoredForm):
    """The tensor itself, called `stored_name`."""

    stored_name: str

    @property
    def names(self) -> Sequence[str]:
        return (self.stored_name,)

    def stored_shape(self, shape: Shape) -> Shape:
        return shape

    def assembled(self, name: str, shape: Shape, stored: Sequence[SourceTensor]) -> SourceTensor:
        return stored[0]


@dataclass(frozen=True)
class Matrices(StoredForm):
    """A tensor of three dimensions as `count` matrices, whose names have their numbers instead of the star."""

    pattern: str
    count: int

    @property
    def names(self) -> Sequence[str]:
        before, _, after = self.pattern.partition("*")
        return [f"{before}{number}{after}" for number in range(self.count)]

    def stored_shape(self, shape: Shape) -> Shape:
        return shape[1:]

    def assembled(self, name: str, shape: Shape, stored: Sequence[SourceTensor]) -> SourceTensor:
        return Stack.of(name, stored)


@dataclass(frozen=True)
class RowsOfMatrices(StoredForm):
    """The rows from `first` on in each matrix of `stored_name`, a tensor whose matrices have `n_rows` rows."""

    stored_name: str
    first: int
    n_rows: int

    @property
    def names(self) -> Sequence[str]:
        return (self.stored_name,)

    def stored_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.n_rows, shape[2])

    def assembled(self, name: str, shape: Shape, stored: Sequence[SourceTensor]) -> SourceTensor:
        (whole,) = stored
        starts = range(self.first, shape[0] * self.n_rows, self.n_rows)
        return Stack.of(name, [RowsOf(whole.name, whole.dtype, shape[1:], whole, start) for start in starts])


@dataclass(frozen=True)
class SomeRows(StoredForm):
    """The rows `numbers`, in this order, of `stored_name`, a matrix of `n_rows` rows; other tensors are the rest."""

    stored_name: str
    numbers: RowIndices
    n_rows: int

    @property
    def names(self) -> Sequence[str]:
        return (self.stored_name,)

    @property
    def part_of(self) -> str:
        return self.stored_name

    def stored_shape(self, shape: Shape) -> Shape:
        return (self.n_rows, *shape[1:])

    def assembled(self, name: str, shape: Shape, stored: Sequence[SourceTensor]) -> SourceTensor:
        return PickedRows(name, stored[0], self.numbers)

    @staticmethod
    def together(name: str, parts: Sequence[tuple[SomeRows, SourceTensor]]) -> SourceTensor:
        """Return the whole matrix of all its parts: the way back of `assembled`."""
        forms, tensors = zip(*parts, strict=True)
        return MergedRows.of(name, tensors, [form.numbers for form in forms])
