"""The schemes uniform-d1, -d2 and -d3: the rule of quant/uniform.py, written as floats or as packed trits."""

from __future__ import annotations

from functools import partial

from tritgguf.converter.checkpoint.packer import Coder
from tritgguf.converter.checkpoint.packings.uniform_trits import METHOD, PACKING, STEPS
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.export.scheme import Scheme
from tritgguf.converter.quant.grids import Grid
from tritgguf.converter.quant.uniform import ENTRIES, GROUP, codebook, information_bits


def coder(source: SourceTensor, grid: Grid | None, threads: int, *, digits: int) -> Coder:
    """Choose the 27 scales of the matrix."""
    book = codebook(source, digits, threads)
    return Coder(book.code, {STEPS: book.steps.astype("<f4")})


def holds(grid: Grid, source: SourceTensor) -> bool:
    """Accept every grid: the loss is measured as it is for other floats."""
    return True


def uniform_scheme(digits: int) -> Scheme:
    """Return the scheme with `digits` trits per weight, 1 to 3."""
    return Scheme(
        f"uniform-d{digits}",
        group=GROUP,
        coder=partial(coder, digits=digits),
        holds=holds,
        packing=PACKING,
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
