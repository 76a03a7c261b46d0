"""FP8: 8-bit floats with one scale per block, row or tensor, as DeepSeek's and Qwen3's FP8 checkpoints hold them.

`X.weight` is F8_E4M3 or F8_E5M2 (rows, columns), `X.weight_scale_inv` has one value per `weight_block_size` rows and
columns, by which the model multiplies; the last blocks may be cut off. Without a block size it has one value, one per
row, or one per 128 × 128; some checkpoints call it `X.weight_scale`. The reference, `Fp8Dequantize`, multiplies in
float32, and then rounds to the dtype that the model is loaded in, which isn't done here:
https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from collections.abc import Container

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.scaled_codes import Block, Items, ScaledTensor, block_sizes, scales_per_block
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.floats import EIGHT_BITS
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError

METHOD = "fp8"
SCALES = (".weight_scale_inv", ".weight_scale")  # both multiply
ACTIVATIONS = (".input_scale", ".activation_scale")  # llama.cpp doesn't round activations to 8 bits
WEIGHT = ".weight"
DEFAULT_BLOCK = (128, 128)


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names this packing."""
    return quantization(config).get("quant_method") == METHOD


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, 8-bit ones as ScaledTensor."""
    said = quantization(config)
    block = block_sizes(said, "weight_block_size") if said.has("weight_block_size") else None
    packed = [name for name, tensor in stored.items() if tensor.dtype in EIGHT_BITS and name.endswith(WEIGHT)]
    if not packed:
        raise SourceError(f"{said.name('quant_method')} is {METHOD}, but no weight is an 8-bit float: fetch it again")
    beside = {name.removesuffix(WEIGHT) + suffix for name in packed for suffix in (*SCALES, *ACTIVATIONS)}
    tensors: dict[str, SourceTensor] = {name: tensor for name, tensor in stored.items() if name not in beside}
    for name in packed:
        tensors[name] = _scaled(stored[name], stored, block)
    return tensors


def _scaled(codes: StoredTensor, stored: StoredTensors, block: Block | None) -> ScaledTensor:
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise SourceError(f"{codes.name} has the shape {codes.shape}; expected rows and columns")
    module = codes.name.removesuffix(WEIGHT)
    found = [stored[module + suffix] for suffix in SCALES if module + suffix in stored]
    if len(found) != 1:
        raise SourceError(
            f"{codes.name} is {codes.dtype} with {len(found)} scales; expected {module}{SCALES[0]} or "
            f"{module}{SCALES[1]}: fetch the checkpoint again"
        )
    scales = scales_per_block(found[0], codes.shape, block or _implied_block(codes, found[0]))
    return ScaledTensor(codes.name, PACKING.name, codes.shape, Items(codes), scales, "F32")


def _implied_block(codes: StoredTensor, scales: StoredTensor) -> Block:
    """Return the block where config.json has none: the tensor, each of its rows, or transformers' default."""
    sizes = [size for size in scales.shape if size != 1]
    if not sizes:
        return codes.shape[0], codes.shape[1]
    return (1, codes.shape[1]) if sizes == [codes.shape[0]] else DEFAULT_BLOCK


PACKING = Packing("fp8", recognizes, read)
