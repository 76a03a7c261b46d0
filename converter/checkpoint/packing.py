"""What a packing is: one on-disk format of a checkpoint's weights, read and written by one file in packings/."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from tritgguf.converter.checkpoint.config_json import FILE, ConfigJson
from tritgguf.converter.checkpoint.packer import Packer
from tritgguf.converter.checkpoint.stored_tensor import StoredTensors as StoredTensors
from tritgguf.converter.checkpoint.unread_methods import WAYS_OUT
from tritgguf.converter.core.registry import by_name
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError


@dataclass(frozen=True)
class Packing:
    """One on-disk weight format.

    `recognizes` tells from config.json and the stored tensors whether a checkpoint has this packing. `read` also gets
    the names of the linear tensors, and returns all tensors; it raises SourceError, TensorError or UnsupportedError
    where the checkpoint contradicts itself or can't be read exactly. A `last_resort` is asked only where no other
    packing recognizes the checkpoint. `packer` takes the quantization_config that config.json will have and returns
    what writes tensors; None: this packing is only read.
    """

    name: str
    recognizes: Callable[[ConfigJson, StoredTensors], bool]
    read: Callable[[ConfigJson, StoredTensors, Container[str]], dict[str, SourceTensor]]
    packer: Callable[[ConfigJson], Packer] | None = None
    last_resort: bool = False


def packings() -> dict[str, Packing]:
    """Return every packing by its name."""
    return by_name("tritgguf.converter.checkpoint.packings", "PACKING", Packing)


def read_packing(
    config: ConfigJson, stored: StoredTensors, linear: Container[str]
) -> tuple[str, dict[str, SourceTensor]]:
    """Return the name of the one packing that recognizes the checkpoint, and its tensors.

    `linear` holds the names of the linear layers' tensors.
    """
    packing = find_packing(config, stored)
    return packing.name, packing.read(config, stored, linear)


def find_packing(config: ConfigJson, stored: StoredTensors) -> Packing:
    """Return the one packing that recognizes the checkpoint; no value is read."""
    quantized = quantization(config)
    method = quantized.text("quant_method")
    if quantized.flag("use_rms_norm"):
        raise UnsupportedError(
            "config.json: quantization_config.use_rms_norm puts a norm inside every linear layer, which no graph of "
            "llama.cpp computes"
        )
    recognizing = [packing for packing in packings().values() if packing.recognizes(config, stored)]
    found = [packing for packing in recognizing if not packing.last_resort] or recognizing
    if len(found) > 1:
        raise SourceError(
            f"the checkpoint looks like {' and like '.join(packing.name for packing in found)}: it is damaged"
        )
    if not found:
        if method in WAYS_OUT:
            raise UnsupportedError(f"{quantized.name('quant_method')} {shown(method)} isn't read: {WAYS_OUT[method]}")
        raise UnsupportedError(
            f"{quantized.name('quant_method')} {shown(method)} isn't known here, and reading such weights as plain "
            f"floats would give a wrong model; known packings are {', '.join(packings())}"
        )
    return found[0]


def quantization(config: ConfigJson) -> Settings:
    """Return config.json's quantization_config, empty where there is none; raise SourceError where it is no object."""
    return Settings(FILE, config).object("quantization_config")
