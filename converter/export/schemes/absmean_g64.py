"""absmean-g64: the 14B seed's format. Groups of 64 columns, scale mean|w|, four columns' trits in one byte.

`X.weight` is U8 (rows, columns / 4) and `X.weight.scales` F32 (rows, columns / 64), as sources/base3.py reads them;
columns are padded with zeros up to the group.
"""

import numpy as np

from tritgguf.converter.checkpoint.packings.base3 import METHOD, PACKING, SCALES, pack
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.tensors import CodedRows, Float32Array, Floats, SourceTensor
from tritgguf.converter.export.scheme import Coder, Packing, Piece, Scheme
from tritgguf.converter.quant.grids import Grid, code_on_grid
from tritgguf.converter.quant.methods.absmean import absmean

GROUP = 64


class Base3Packing(Packing):
    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        n_rows, n_groups = shape[0], -(-shape[1] // GROUP)
        return Entry(name, "U8", (n_rows, n_groups * GROUP // 4)), Entry(name + SCALES, "F32", (n_rows, n_groups))

    def pack(self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, coder: Coder) -> list[Piece]:
        packed, scales = pack(rows.codes), rows.scales.astype("<f4").view(np.uint8)
        return [
            (name, chunk.start * packed.shape[1], packed),
            (name + SCALES, chunk.start * scales.shape[1], scales),
        ]


def padded(rows: Float32Array) -> Float32Array:
    """Return the rows with zeros up to a whole number of groups."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP)))


def holds(grid: Grid, source: SourceTensor) -> bool:
    """Whether every group of 64 columns, the last one with its padding, has one scale."""
    return grid.fits(GROUP) or (grid.ternary and grid.group == source.shape[1])


def coder(source: SourceTensor, grid: Grid | None, threads: int) -> Coder:
    """Keep the codes and scales of a tensor that is ternary already; else take each group's mean magnitude."""

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
    packing=Base3Packing(),
    config={"quant_method": METHOD, "group_size": GROUP, "packing": PACKING},
    reading="Base-3 packing: `tritgguf.converter.unpack_base3` shows in ten lines how a tensor is read.",
    packs_embeddings=True,
)
