"""Sliding windows in graphs that have them: which layers slide, how they are rotated, and the keys that say so."""

from __future__ import annotations

from gguf import Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, booleans
from tritgguf.converter.model.config import MOST_LAYERS, PARAMETERS, SCALING, DecoderConfig

FULL, SLIDING = "full_attention", "sliding_attention"
LOCAL_THETA = "rope_local_base_freq"  # the sliding layers' rope_theta, as transformers 4 spells it
PERIOD = "sliding_window_pattern"


def with_one_rotation(keys: Settings) -> ConfigJson:
    """Return the keys with the full layers' rotation as the model's, and that of the sliding ones as LOCAL_THETA.

    So transformers 4 spells them. Where layer_types is missing, every PERIOD-th layer attends to everything. Raises
    UnsupportedError where the sliding layers' rotation is scaled.
    """
    respelt = {**keys}
    if keys.has(PARAMETERS):
        by_type = keys.object(PARAMETERS)
        if others := [key for key in by_type if key not in (FULL, SLIDING)]:
            raise UnsupportedError(f"{by_type.name(others[0])} isn't known; expected only {FULL} and {SLIDING}")
        sliding = by_type.object(SLIDING)
        if (kind := sliding.text("rope_type") or "default") != "default":
            raise UnsupportedError(
                f"{sliding.name('rope_type')} is {kind!r:.80}, but no graph scales the sliding layers' rotation"
            )
        respelt[PARAMETERS] = {**by_type.object(FULL), **keys.object(SCALING)}
        respelt[LOCAL_THETA] = sliding.get("rope_theta", keys.get(LOCAL_THETA))
    if not keys.has("layer_types") and keys.has(PERIOD):
        period, n_layers = keys.integer(PERIOD), keys.integer("num_hidden_layers", most=MOST_LAYERS)
        respelt["layer_types"] = [SLIDING if number % period else FULL for number in range(1, n_layers + 1)]
    return respelt


def layers_that_slide(config: DecoderConfig) -> list[bool]:
    """Return for each layer whether layer_types says that it attends to a window only; none does without the key.

    Raises SourceError where there isn't one type per layer, UnsupportedError for other types.
    """
    types = config.raw.texts("layer_types")
    if types is None:
        return [False] * config.n_layers
    if len(types) != config.n_layers:
        raise config.raw.wrong("layer_types", f"a list of {config.n_layers} texts")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise UnsupportedError(
                f"config.json: layer_types has {kind!r:.80}; llama.cpp's {config.graph} graph has {FULL} and {SLIDING}"
            )
    return [kind == SLIDING for kind in types]


def require_window(config: DecoderConfig) -> None:
    """Raise SourceError where layers slide, but no window is given."""
    if any(layers_that_slide(config)) and config.sliding_window is None:
        raise config.raw.wrong("sliding_window", "a positive integer, since layer_types has sliding layers")


def layer_types_setting(keys: Settings) -> ConfigJson:
    """Return layer_types of a GGUF file's keys, nothing without a pattern: the way back of `pattern_metadata`."""
    if not keys.has("attention.sliding_window"):
        return {"layer_types": [FULL] * keys.integer("block_count", most=MOST_LAYERS)}
    pattern = keys.get("attention.sliding_window_pattern")
    return {"layer_types": [SLIDING if slides else FULL for slides in pattern]} if isinstance(pattern, list) else {}


def pattern_metadata(config: DecoderConfig, arch: str) -> Metadata:
    """Return the key that tells llama.cpp's graph which layers slide, nothing where none does."""
    if config.sliding_window is None:
        return {}
    return {Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch=arch): booleans(layers_that_slide(config))}
