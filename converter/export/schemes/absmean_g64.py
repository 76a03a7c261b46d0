"""absmean-g64: the 14B seed's format. Groups of 64 columns, scale mean|w|, written in base-3 packing.

trit = clip(round(w / scale), -1, 1), the rule of BitNet b1.58 (https://arxiv.org/abs/2402.17764) per group. Rows are
padded with zeros to a multiple of 64 columns.
"""

import numpy as np

from tritgguf.converter.checkpoint.packer import Coder
from tritgguf.converter.checkpoint.packings.base3 import LAYOUT, METHOD, PACKING
from tritgguf.converter.core.tensors import CodedRows, Float32Array, Floats, SourceTensor
from tritgguf.converter.export.scheme import Scheme
from tritgguf.converter.quant.grids import Grid, code_on_grid
from tritgguf.converter.quant.methods.absmean import absmean

GROUP = 64


def padded(rows: Float32Array) -> Float32Array:
    """Return the rows, padded with zeros to a multiple of the group."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP)))


def holds(grid: Grid, source: SourceTensor) -> bool:
    """Whether each group of 64 columns has one scale; the last group may end with padding."""
    return grid.ternary and (grid.group % GROUP == 0 or grid.group == source.shape[1])


def coder(source: SourceTensor, grid: Grid | None, threads: int) -> Coder:
    """Keep codes and scales of a tensor on a grid that fits; else scale each group by its mean magnitude."""

    def kept(rows: Float32Array) -> CodedRows:
        coded = code_on_grid(Floats.of(padded(rows)), GROUP)
        assert coded is not None
        return coded

    if grid is not None and holds(grid, source):
        return Coder(kept)
    return Coder(lambda rows: absmean(padded(rows), GROUP))


SCHEME = Scheme(
    "absmean-g64",
    group=GROUP,
    coder=coder,
    holds=holds,
    packing=PACKING,
    config={"quant_method": METHOD, "group_size": GROUP, "packing": LAYOUT},
    reading="Base-3 packing: `tritgguf.converter.unpack_base3` shows in ten lines how to read a tensor.",
    packs_embeddings=True,
)
