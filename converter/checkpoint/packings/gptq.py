"""GPTQ, as GPTQModel and AutoGPTQ write it: gptq_layout.py describes the tensors.

config.json's `checkpoint_format` (GPTQModel also writes `format`) is `gptq`, whose zero points are stored minus one, or
`gptq_v2`. Two-bit symmetric weights are {-2, -1, 0, 1} times a scale. Modules that aren't quantized are plain floats,
whatever `dynamic` and other keys say of them.
"""

from __future__ import annotations

from collections.abc import Container

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.gptq_layout import QWEIGHT, Said, bits_and_groups, overrides, read_modules
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError

METHOD = "gptq"
BITS = (2, 3, 4, 8)  # the others are stored in planes, as checkpoint_format gptq_p
MINUS_ONE = {"gptq": True, "gptq_v2": False}  # by checkpoint_format
# Values that change what the model computes, or how its tensors lie: only those named here are read.
PLAIN = {"pack_dtype": ("int32",), "adapter": (), "rotation": (), "is_marlin_format": (False,), "method": (METHOD,)}


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names GPTQ, or names nothing and there is a qweight."""
    said = quantization(config)
    return said.get("quant_method") == METHOD or (not said and any(name.endswith(QWEIGHT) for name in stored))


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as GptqTensor."""
    said = quantization(config)
    if not said:
        raise SourceError(
            "the weights look packed as GPTQ, but config.json has no quantization_config: older programs keep it in "
            "quantize_config.json; copy that there, with quant_method gptq"
        )
    _require_plain(said)
    minus_one, key = _convention(said)
    modules = overrides(said, "dynamic")
    for module in modules.values():
        _require_plain(module)
        if _convention(module)[0] not in (None, minus_one):
            raise UnsupportedError(f"{module.name('format')} differs from the other modules' format, which isn't read")
    bits, groups = bits_and_groups(said, modules, BITS)
    return read_modules(stored, Said(PACKING.name, bits, groups, said.flag("sym", True), minus_one, key))


def _require_plain(said: Settings) -> None:
    for key, known in PLAIN.items():
        if said.has(key) and said[key] not in known:
            expected = f"; read are {', '.join(map(str, known))}" if known else ""
            raise UnsupportedError(f"{said.name(key)} is {shown(said[key])}, which isn't read{expected}")


def _convention(said: Settings) -> tuple[bool | None, str]:
    """Return whether zero points are stored minus one, None if it isn't said; and the key that says so."""
    named = {said.text(key): key for key in ("format", "checkpoint_format") if said.has(key)}
    if len(named) > 1:
        raise SourceError(f"{said.name('format')} and checkpoint_format differ: {' and '.join(map(shown, named))}")
    for value, key in named.items():
        if value not in MINUS_ONE:
            known = " or ".join(MINUS_ONE)
            raise UnsupportedError(f"{said.name(key)} is {shown(value)}, which isn't read; expected {known}")
        return MINUS_ONE[value], said.name(key)
    return None, said.name("checkpoint_format")


PACKING = Packing("GPTQ", recognizes, read)
