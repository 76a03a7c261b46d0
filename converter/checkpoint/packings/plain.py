"""Plain floats: every tensor is what the model computes with, be it ternary already (TriLM, Bonsai, BitCPM) or not."""

from __future__ import annotations

from collections.abc import Container

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.packing import Source, StoredTensors, quantization
from tritgguf.converter.checkpoint.packings import base3, bitnet_packed
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.quant.grids import find_grid


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names no way to make weights of the floats; asked where no other source recognizes them."""
    return quantization(config).get("quant_method") in (None, "bitnet")


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors; floats under a bitnet config must be ternary, as Falcon-E's bfloat16 are."""
    packed = next((name for name, tensor in stored.items() if tensor.dtype == "U8"), None)
    if packed is not None:
        raise SourceError(
            f"{packed} is packed, but the checkpoint has neither {packed}{bitnet_packed.SCALE} nor "
            f"{packed}{base3.SCALES}: fetch it again"
        )
    if quantization(config):
        first = next((tensor for name, tensor in stored.items() if name in linear), None)
        if first is None or find_grid(first) is None:
            raise UnsupportedError(
                "config.json says quant_method bitnet, but the weights are neither packed nor ternary floats, and "
                "nothing says how to make them so (quantization_mode online would)"
            )
    return dict(stored)


SOURCE = Source("plain floats", recognizes, read, last_resort=True)
