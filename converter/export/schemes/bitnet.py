"""bitnet: Hugging Face's packed bitnet, `linear_class` bitlinear. One scale per tensor, four rows' trits in one byte.

s = mean|w| over the tensor, trit = clip(round(w / s), -1, 1), as the masters in sources/masters.py; `X.weight_scale` is
1 / s, by which the layer divides. transformers computes such layers with 8-bit activations.
"""

from collections.abc import Iterator

import numpy as np

from tritgguf.converter.checkpoint.packings.bitnet_packed import METHOD, SCALE, pack
from tritgguf.converter.checkpoint.packings.masters import master
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.tensors import CodedRows, Float32Array, RowIndices, SourceTensor, row_chunks
from tritgguf.converter.errors import TensorError
from tritgguf.converter.export.scheme import Coder, Packing, Piece, Scheme
from tritgguf.converter.quant.grids import Grid


class BitnetPacking(Packing):
    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        if shape[0] % 4:
            raise TensorError(f"{name} has {shape[0]} rows; bitnet packing puts four in one: take another scheme")
        return Entry(name, "U8", (shape[0] // 4, shape[1])), Entry(name + SCALE, "F32", (1,))

    def chunks(self, shape: tuple[int, ...]) -> Iterator[slice]:
        return row_chunks((shape[0] // 4, shape[1]))

    def rows(self, shape: tuple[int, ...], chunk: slice) -> RowIndices:
        return (np.arange(4)[:, None] * (shape[0] // 4) + np.arange(chunk.start, chunk.stop)).reshape(-1)

    def pack(self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, coder: Coder) -> list[Piece]:
        packed = pack(rows.codes)
        pieces: list[Piece] = [(name, chunk.start * shape[1], packed)]
        if chunk.start == 0:
            pieces.append((name + SCALE, 0, coder.constants[SCALE].view(np.uint8)))
        return pieces


def holds(grid: Grid, source: SourceTensor) -> bool:
    """Whether the tensor has one scale, and not zero."""
    return grid.ternary and bool(grid.scale)


def coder(source: SourceTensor, grid: Grid | None, threads: int) -> Coder:
    """Keep the codes of a tensor that is ternary with one scale already; else take its mean magnitude."""
    if grid is not None and grid.scale and holds(grid, source):
        inverse = np.float32(1) / np.float32(grid.scale)
    else:
        inverse = np.float32(master(source).inverse_scale)

    def code(rows: Float32Array) -> CodedRows:
        codes = np.clip(np.rint(rows * inverse), -1, 1).astype(np.int8)
        return CodedRows(codes, np.full((len(rows), 1), np.float32(1) / inverse, np.float32), rows.shape[1])

    return Coder(code, {SCALE: np.array([inverse], "<f4")})


SCHEME = Scheme(
    "bitnet",
    group=None,
    coder=coder,
    holds=holds,
    packing=BitnetPacking(),
    config={
        "quant_method": METHOD,
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    },
    reading="`transformers.AutoModelForCausalLM.from_pretrained` loads it and computes with 8-bit activations.",
)
