"""What a grid is: how many levels a tensor's values have, and what shares a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tritgguf.converter.quant.codec import TernaryCodec

EXTENTS = ("row", "row shard", "tensor")  # finest first; narrower groups are so many columns


@dataclass(frozen=True)
class Grid:
    """A tensor's grid.

    `levels` is 3, 4, 9 or 27. `group` neighbouring columns share one scale (the row's length if whole rows do), and
    `extent` names the group for messages. `scales` are those of the tensor's matrices, if each has only one: of most
    tensors one number, of a layer's experts one each. `fp16_error` is the largest relative error of rounding a scale to
    fp16, `zeros` the share of zeros (None if unknown), `outliers` the number of values off the grid.
    """

    levels: int
    group: int
    extent: str
    scales: tuple[float, ...] | None = None
    fp16_error: float = 0.0
    zeros: float | None = None
    outliers: int = 0

    @property
    def ternary(self) -> bool:
        """Whether ternary codes and scales reproduce every value."""
        return self.levels == 3 and self.outliers == 0

    @property
    def kind(self) -> str:
        """What messages call the grid."""
        return "ternary" if self.levels == 3 else f"{self.levels}-level"

    def description(self, shape: tuple[int, ...]) -> str:
        """Describe, for messages, the grid of a tensor of that shape."""
        outliers = f", but {self.outliers} of {math.prod(shape)} values are off it" if self.outliers else ""
        return f"its values are on a {self.kind} grid per {self.extent}{outliers}"

    @property
    def scale(self) -> float | None:
        """The scale of the whole tensor, if it has only one."""
        return self.scales[0] if self.scales and len(self.scales) == 1 else None

    def fits(self, codec: TernaryCodec) -> bool:
        """Whether a type stores the grid's codes: it has the levels, and each of its blocks lies in one group."""
        return self.levels in codec.exact_levels and self.outliers == 0 and self.group % codec.block == 0


def common_grid(grids: Sequence[Grid], n_columns: int) -> Grid:
    """Return the grid that all matrices of a tensor are on, each with scales of its own, such as a layer's experts.

    Its groups lie in groups of each; fewer levels than the most are among those.
    """
    group = math.gcd(*(grid.group for grid in grids))
    extents = {grid.extent for grid in grids} if group == n_columns else set()
    extent = next((extent for extent in EXTENTS if extent in extents), f"{group} columns")
    zeros = [grid.zeros for grid in grids if grid.zeros is not None]
    return Grid(
        levels=max(grid.levels for grid in grids),
        group=group,
        extent="matrix" if extent == "tensor" else extent,
        scales=tuple(scale for grid in grids for scale in grid.scales or ()) if extent == "tensor" else None,
        fp16_error=max(grid.fp16_error for grid in grids),
        zeros=math.fsum(zeros) / len(zeros) if len(zeros) == len(grids) else None,
        outliers=sum(grid.outliers for grid in grids),
    )
