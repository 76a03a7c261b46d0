"""The schemes uniform-d1, -d2 and -d3: how the codec of uniform.py is written, as floats or as packed trits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from tritgguf.converter.checkpoint.packings.uniform_trits import (
    METHOD,
    SHAPE,
    STEPS,
    TRITS,
    n_blocks,
    row_trits,
    trits_of,
)
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.tensors import CodedRows, SourceTensor, row_chunks
from tritgguf.converter.errors import TensorError
from tritgguf.converter.export.scheme import Coder, Packing, Piece, Scheme
from tritgguf.converter.quant.grids import Grid
from tritgguf.converter.quant.trit_packing import BLOCK, BLOCK_BYTES, pack_trits
from tritgguf.converter.quant.uniform import ENTRIES, GROUP, codebook, information_bits


@dataclass(frozen=True)
class TritPacking(Packing):
    """Trits of one matrix as one stream; chunks of rows start where a block does."""

    digits: int

    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        if shape[1] % GROUP:
            raise TensorError(f"{name}: rows of {shape[1]} values aren't a multiple of {GROUP}: take another scheme")
        return (
            Entry(name + TRITS, "U8", (n_blocks(shape, self.digits), BLOCK_BYTES)),
            Entry(name + STEPS, "F32", (ENTRIES,)),
            Entry(name + SHAPE, "I64", (2,)),
        )

    def chunks(self, shape: tuple[int, ...]) -> Iterator[slice]:
        aligned = BLOCK // math.gcd(BLOCK, row_trits(shape[1], self.digits))  # so many rows are whole blocks
        usual = next(row_chunks(shape))
        step = max(1, usual.stop // aligned) * aligned
        for start in range(0, shape[0], step):
            yield slice(start, min(start + step, shape[0]))

    def pack(self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, coder: Coder) -> list[Piece]:
        digits = trits_of(rows, coder.constants[STEPS], self.digits)
        packed = pack_trits(np.pad(digits, (0, -digits.size % BLOCK)))
        offset = chunk.start * row_trits(shape[1], self.digits) // BLOCK * BLOCK_BYTES
        pieces: list[Piece] = [(name + TRITS, offset, packed)]
        if chunk.start == 0:
            pieces.append((name + STEPS, 0, coder.constants[STEPS].view(np.uint8)))
            pieces.append((name + SHAPE, 0, np.array(shape, "<i8").view(np.uint8)))
        return pieces


def coder(source: SourceTensor, grid: Grid | None, threads: int, *, digits: int) -> Coder:
    """Choose the matrix's codebook."""
    book = codebook(source, digits, threads)
    return Coder(book.code, {STEPS: book.steps.astype("<f4")})


def holds(grid: Grid, source: SourceTensor) -> bool:
    """Any grid may be coded: what that changes is measured like that of floats."""
    return True


def uniform_scheme(digits: int) -> Scheme:
    """Return the scheme of so many trits per weight."""
    return Scheme(
        f"uniform-d{digits}",
        group=GROUP,
        coder=partial(coder, digits=digits),
        holds=holds,
        packing=TritPacking(digits),
        config={
            "quant_method": METHOD,
            "digits": digits,
            "group_size": GROUP,
            "scale_entries": ENTRIES,
            "packing": "17 trits in 27 bits",
        },
        reading="Packed trits: docs/formats.md of tritgguf describes the layout.",
        bits=information_bits(digits),
        dequantized=True,
        plain_dtype="F16",
    )
