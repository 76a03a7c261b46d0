"""What a source is: one way in which a checkpoint's safetensors hold the weights of a model."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.safetensors_reader import SafetensorsTensor
from tritgguf.converter.core.registry import offered
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError

StoredTensors = Mapping[str, SafetensorsTensor]


@dataclass(frozen=True)
class Source:
    """A packing: `recognizes` tells from config.json and the stored tensors whether it is this one.

    `read` gets the names of the linear tensors too and returns all tensors; it raises SourceError or UnsupportedError
    where the checkpoint contradicts itself or can't be computed exactly. A `last_resort` is asked only where no other
    source recognizes the checkpoint.
    """

    name: str
    recognizes: Callable[[ConfigJson, StoredTensors], bool]
    read: Callable[[ConfigJson, StoredTensors, Container[str]], dict[str, SourceTensor]]
    last_resort: bool = False


def sources() -> dict[str, Source]:
    """Return every source by its name."""
    return {source.name: source for source in offered("tritgguf.converter.checkpoint.packings", "SOURCE", Source)}


def read_source(
    config: ConfigJson, stored: StoredTensors, linear: Container[str]
) -> tuple[str, dict[str, SourceTensor]]:
    """Return the name of the one source that recognizes the checkpoint, and its tensors; `linear` names linear ones."""
    if quantization(config).get("use_rms_norm"):
        raise UnsupportedError(
            "config.json: quantization_config.use_rms_norm puts a norm inside every linear layer, which no graph of "
            "llama.cpp computes"
        )
    recognizing = [source for source in sources().values() if source.recognizes(config, stored)]
    found = [source for source in recognizing if not source.last_resort] or recognizing
    if len(found) > 1:
        raise SourceError(
            f"the checkpoint looks like {' and like '.join(source.name for source in found)}: it is damaged"
        )
    if not found:
        method = quantization(config).get("quant_method")
        raise UnsupportedError(
            f"config.json has a quantization_config ({method}) that isn't known here, and reading such weights as "
            f"plain floats would give a wrong model; known are {', '.join(sources())}"
        )
    return found[0].name, found[0].read(config, stored, linear)


def quantization(config: ConfigJson) -> ConfigJson:
    """Return config.json's quantization_config, empty where there is none."""
    found = config.get("quantization_config")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SourceError(f"config.json: quantization_config must be an object, found {found!r}")
    return found
