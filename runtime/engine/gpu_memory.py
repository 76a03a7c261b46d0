"""How many of a model's layers fit into the memory of the devices that compute them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import TritggufError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.runtime.engine.devices import Device
from tritgguf.runtime.engine.gguf_header import Header
from tritgguf.runtime.engine.memory import cache_bytes

ALL_LAYERS = -1
CACHE_TOKENS = 4096  # that room is left for where nobody says how long the contexts will be
# Of each device, for what products and attention need, and for other programs; llama.cpp's own programs leave as much
# (fit_params_target in its common.h).
LEFT_FREE_BYTES = 1 << 30
_CACHE_VALUE_BYTES = 2
_BLOCK = re.compile(r"blk\.(\d+)\.")
_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"


def layer_bytes(path: Path, header: Header, cache_tokens: int) -> list[int]:
    """Return the bytes of each layer with its KV cache, in the order of the file; the output layer is the last one.

    Embeddings stay on the CPU; where they are the output layer too, a device has a copy. Empty where the file can't be
    read: llama.cpp says what is wrong with it.
    """
    try:
        tensors = read_gguf(path).stock_tensors()
    except TritggufError:
        return []
    blocks: dict[int, int] = {}
    output = 0
    for name, tensor in tensors.items():
        if found := _BLOCK.match(name):
            number = int(found[1])
            blocks[number] = blocks.get(number, 0) + tensor.n_bytes
        elif name != _EMBEDDINGS or _OUTPUT not in tensors:
            output += tensor.n_bytes
    if not blocks:
        return []
    cache = cache_bytes(header, cache_tokens, value_bytes=_CACHE_VALUE_BYTES) // len(blocks)
    return [*(blocks[number] + cache for number in sorted(blocks)), output]


def layers_that_fit(layers: Sequence[int], devices: Sequence[Device]) -> int:
    """Return how many layers, the last ones, the devices' free memory holds; ALL_LAYERS for all.

    `layers` are their bytes. It is all, too, where the devices or their memory aren't known.
    """
    if not (devices and all(device.total_bytes for device in devices)):
        return ALL_LAYERS
    room = sum(max(0, device.free_bytes - LEFT_FREE_BYTES) for device in devices)
    for count, size in enumerate(reversed(layers)):
        room -= size
        if room < 0:
            return count
    return ALL_LAYERS


def fit_note(path: Path, layers: Sequence[int], n_fitting: int, devices: Sequence[Device]) -> str:
    """Say in one line that not all layers fit."""
    free = ", ".join(f"{device.name} has {format_size(device.free_bytes)} of memory free" for device in devices)
    result = f"the last {n_fitting} of {len(layers)} layers go there and the CPU computes the rest"
    return (
        f"{path}: {free} and the model needs {format_size(sum(layers))}, so "
        f"{result if n_fitting else 'the CPU computes all of it'}; --gpu-layers decides otherwise"
    )
