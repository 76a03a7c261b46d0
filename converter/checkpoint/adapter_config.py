"""Read a PEFT adapter's adapter_config.json, as far as it says how the adapter is merged.

The rules are those of PEFT 0.21 (https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/config.py). A key
that would change the merged weights in a way that isn't known here is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.core.patterns import require_quick
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.errors import SourceError, UnsupportedError

FILE = "adapter_config.json"
MAX_PATTERNS = 4096  # in one list
Number = TypeVar("Number", int, float)
_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias",
    "init_lora_weights", "target_modules", "modules_to_save", "exclude_modules", "layers_to_transform",
}  # fmt: skip
# These say where the adapter comes from, or how it was trained. `bias` only tells which tensors were saved, and
# fan_in_fan_out is set to false by PEFT for layers that are stored as (outputs, inputs), which all are here.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version",
    "inference_mode", "lora_dropout", "megatron_core", "megatron_config", "qalora_group_size", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "runtime_config", "layers_pattern", "bias", "fan_in_fan_out",
    "ensure_weight_tying",
}  # fmt: skip
# All others change the base weights when PEFT loads the adapter.
INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
_NEUTRAL: tuple[object, ...] = (None, False, {}, [])


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says.

    `targets` and `saved` are the ends of modules' names that get an update or are replaced; `targets` is None where
    a pattern or an exception chooses them.
    """

    rank: int
    alpha: float
    rank_stabilized: bool
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    dora: bool
    lora_bias: bool
    targets: tuple[str, ...] | None
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's update."""
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scaling(self, module: str) -> float:
        """Return what a module's update is multiplied by."""
        rank = self.rank_of(module)
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return what the folder's adapter_config.json says; raise SourceError or UnsupportedError where it can't be."""
    if not (folder / FILE).is_file():
        raise SourceError(f"{folder} has no {FILE}; expected the folder of a PEFT adapter")
    said = Settings(FILE, read_object(folder / FILE, SourceError))
    _require_lora(said)
    targets = None if isinstance(said.get("target_modules"), str) else said.texts("target_modules")
    if said.get("exclude_modules") not in _NEUTRAL or said.get("layers_to_transform") not in _NEUTRAL:
        targets = None
    return AdapterConfig(
        rank=said.integer("r", 8),
        alpha=said.number("lora_alpha", 8.0, least=0.0),
        rank_stabilized=said.flag("use_rslora"),
        ranks=_patterns(said, "rank_pattern", lambda ranks, key: ranks.integer(key)),
        alphas=_patterns(said, "alpha_pattern", lambda alphas, key: alphas.number(key, least=0.0)),
        dora=said.flag("use_dora"),
        lora_bias=said.flag("lora_bias"),
        targets=None if targets is None else tuple(targets),
        saved=tuple(said.texts("modules_to_save") or ()),
    )


def _require_lora(said: Settings) -> None:
    if said.text("peft_type") != "LORA":
        raise UnsupportedError(
            f"{FILE}: peft_type is {shown(said.get('peft_type'))}; expected LORA, which can be merged here; merge this "
            "one with peft's merge_and_unload() and convert what that saves"
        )
    initial = said.get("init_lora_weights")
    if not any(initial is known or (initial == known and isinstance(initial, str)) for known in INITIALIZATIONS):
        raise UnsupportedError(
            f"{FILE}: init_lora_weights {shown(initial)} changes the base model's weights when PEFT loads the adapter, "
            "which isn't done here; save it as a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    for key, value in said.items():
        if key not in _READ and key not in _WITHOUT_EFFECT and value not in _NEUTRAL:
            raise UnsupportedError(
                f"{said.name(key)} is {shown(value)}, and how that changes the merged weights isn't known here; "
                "merge the adapter with peft's merge_and_unload() and convert what that saves"
            )


def _patterns(
    said: Settings, key: str, read: Callable[[Settings, str], Number]
) -> tuple[tuple[re.Pattern[str], Number], ...]:
    """Return the patterns of modules' names, each for a whole name or its end after a dot, with their values."""
    values = said.object(key)
    if len(values) > MAX_PATTERNS:
        raise SourceError(f"{said.name(key)} holds more than {MAX_PATTERNS} patterns; expected one per module at most")
    require_quick(said.name(key), values)
    try:
        return tuple((re.compile(rf"(.*\.)?({pattern})$"), read(values, pattern)) for pattern in values)
    except (re.error, OverflowError, RecursionError) as error:
        raise SourceError(f"{said.name(key)} holds an invalid pattern: {error}") from error
