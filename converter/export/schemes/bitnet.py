"""bitnet: one scale per tensor, written in Hugging Face's bitnet packing with `linear_class` bitlinear.

s = mean|w| over the tensor, trit = clip(round(w / s), -1, 1), as a model with latent weights computes them; the stored
scale is 1 / s, by which the layer divides. transformers computes such layers with 8-bit activations.
"""

import numpy as np

from tritgguf.converter.checkpoint.packer import Coder
from tritgguf.converter.checkpoint.packings.bitnet_packed import METHOD, PACKING, SCALE
from tritgguf.converter.checkpoint.packings.latent_weights import ternarized
from tritgguf.converter.core.tensors import CodedRows, Float32Array, SourceTensor
from tritgguf.converter.export.scheme import Scheme
from tritgguf.converter.quant.grids import Grid


def holds(grid: Grid, source: SourceTensor) -> bool:
    """Whether the tensor has one scale, which isn't zero."""
    return grid.ternary and bool(grid.scale)


def coder(source: SourceTensor, grid: Grid | None, threads: int) -> Coder:
    """Keep the codes of a tensor that is ternary with one scale; else use its mean magnitude as the scale."""
    if grid is not None and grid.scale and holds(grid, source):
        inverse = np.float32(1) / np.float32(grid.scale)
    else:
        inverse = np.float32(ternarized(source).inverse_scale)

    def quantize(rows: Float32Array) -> CodedRows:
        codes = np.clip(np.rint(rows * inverse), -1, 1).astype(np.int8)
        return CodedRows(codes, np.full((len(rows), 1), np.float32(1) / inverse, np.float32), rows.shape[1])

    return Coder(quantize, {SCALE: np.array([inverse], "<f4")})


SCHEME = Scheme(
    "bitnet",
    group=None,
    coder=coder,
    holds=holds,
    packing=PACKING,
    config={
        "quant_method": METHOD,
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    },
    reading="`transformers.AutoModelForCausalLM.from_pretrained` loads it and computes with 8-bit activations.",
)
