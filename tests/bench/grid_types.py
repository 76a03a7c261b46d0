"""How well types hold weights on a grid per 16 columns: ggml's quantizers against the fit to known codes.

python -m tests.bench.grid_types MODEL

MODEL is a Hugging Face folder of floats. Prints, for the uniform codec's 3, 9 and 27 levels, the relative error
|stored - weights| / |weights| over rows of the linear layers of four layers, as ggml reads the bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.oracles import libggml
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.export.scheme import scheme_named
from tritgguf.converter.quant.codec import codecs
from tritgguf.converter.quant.known_grid import KnownGridCodec

N_ROWS = 128
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")


def samples(model: Path, levels: int) -> list[np.ndarray]:
    """Return rows of tensors as the uniform codec leaves them, in fp16."""
    tensors = open_checkpoint(model, linear=()).tensors
    assert tensors is not None
    n_layers = 1 + max(int(name.split(".")[2]) for name in tensors if ".layers." in name)
    scheme = scheme_named({3: "uniform-d1", 9: "uniform-d2", 27: "uniform-d3"}[levels])
    found = []
    for layer in np.linspace(0, n_layers - 1, 4).astype(int):
        for kind in KINDS:
            source = tensors[f"model.layers.{layer}.{kind}.weight"]
            coder = scheme.coder(source, None, 2)
            values = coder.quantize(source.read(slice(0, N_ROWS))).dequantize()
            found.append(values.astype(np.float16).astype(np.float32))
    return found


def error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the relative error over all."""
    lost = sum(float(np.square(stored - values, dtype=np.float64).sum()) for stored, values in pairs)
    return float(np.sqrt(lost / sum(float(np.square(values, dtype=np.float64).sum()) for _, values in pairs)))


def main() -> None:
    model = Path(sys.argv[1])
    print(
        "| levels | type | bits per weight | ggml's quantizer | fit to the codes | ratio |\n|---|---|---|---|---|---|"
    )
    for levels in (3, 9, 27):
        values = samples(model, levels)
        for name, codec in sorted(codecs().items(), key=lambda item: item[1].block_bytes / item[1].block):
            if levels not in codec.grid_levels and name not in ("tq2_0", "q8_0"):
                continue
            kind = codec.ggml_type
            stock = error([(libggml.dequantize(libggml.quantize(v, kind), kind), v) for v in values])
            row = f"| {levels} | {name} | {8 * codec.block_bytes / codec.block:g} | {stock:.4f} |"
            if levels in codec.grid_levels:
                known = KnownGridCodec(codec, levels)
                ours = error([(libggml.dequantize(known.encode(v), kind), v) for v in values])
                print(f"{row} {ours:.5f} | {stock / ours:.1f} |")
            else:
                print(f"{row} - | - |")


if __name__ == "__main__":
    main()
