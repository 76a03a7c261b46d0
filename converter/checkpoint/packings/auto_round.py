"""AutoRound in its own format: GPTQ's layout (gptq_layout.py), with scales of either sign.

config.json's `packing_format` tells how zero points are stored: `auto_round:auto_gptq` minus one, `auto_round` and
`auto_round:gptqmodel` as they are. `extra_config` gives single modules other widths. The reference is
https://github.com/intel/auto-round/tree/main/auto_round_extension/torch. Its MLX format is read by mlx.py.
"""

from __future__ import annotations

from collections.abc import Container

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.gptq_layout import Said, bits_and_groups, overrides, read_modules
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import UnsupportedError

METHODS = ("auto-round", "intel/auto-round")
BITS = (2, 3, 4, 5, 6, 7, 8)
MINUS_ONE = {  # by packing_format
    "auto": True,
    "auto_round:auto_gptq": True,
    "auto_round:gptq": True,
    "auto_round": False,
    "auto_round:gptqmodel": False,
}
MLX_FORMATS = ("mlx", "auto_round:mlx")
FLOAT_BITS = 16


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names AutoRound, and not its MLX format."""
    said = quantization(config)
    return said.get("quant_method") in METHODS and said.get("packing_format") not in MLX_FORMATS


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors, packed ones as GptqTensor."""
    said = quantization(config)
    packing_format = said.text("packing_format")
    if packing_format is not None and packing_format not in MINUS_ONE:
        raise UnsupportedError(
            f"{said.name('packing_format')} is {shown(packing_format)}, which isn't read; expected one of "
            f"{', '.join([*MINUS_ONE, *MLX_FORMATS])}"
        )
    symmetric, minus_one = said.flag("sym", True), MINUS_ONE.get(packing_format or "")
    if minus_one is None and not symmetric:
        raise UnsupportedError(
            f"{said.name('packing_format')} is missing, and without sym nothing else tells how zero points are stored"
        )
    modules = overrides(said, "extra_config")
    for settings in (said, *modules.values()):
        if not settings.has("bits") or settings.integer("bits") < FLOAT_BITS:
            require_integers(settings)
    bits, groups = bits_and_groups(said, modules, BITS)
    key = said.name("packing_format")
    return read_modules(stored, Said(PACKING.name, bits, groups, symmetric, minus_one, key))


def require_integers(said: Settings) -> None:
    """Raise UnsupportedError unless plain integers are all that is quantized."""
    for key in ("rotation_config", "spinquant_config"):
        if said.get(key):
            raise UnsupportedError(
                f"{said.name(key)} says that the weights are rotated; no graph of llama.cpp rotates activations so"
            )
    if not (said.text("data_type") or "int").startswith("int"):
        raise UnsupportedError(f"{said.name('data_type')} is {shown(said['data_type'])}; only integers (int) are read")
    if said.has("act_bits") and said.integer("act_bits") < FLOAT_BITS:
        raise UnsupportedError(
            f"{said.name('act_bits')} is {said['act_bits']}: the model rounds its activations, which no graph of "
            "llama.cpp does the same way"
        )
    if said.get("super_bits"):
        raise UnsupportedError(f"{said.name('super_bits')} says that scales are packed too, which isn't read")


PACKING = Packing("AutoRound", recognizes, read)
