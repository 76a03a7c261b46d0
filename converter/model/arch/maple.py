"""Maple: experts with clamped activations in every layer; a window and half-rotated heads in three of four layers.

The other layers attend to everything and have no rotation. The rules are those of the model's own code,
https://huggingface.co/deepgrove/maple-preview/blob/main/modeling_maple.py, whose linear layers are ternary per row.
"""

from __future__ import annotations

from dataclasses import replace

from gguf import Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32s, uint32
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import Ability, DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward_norm,
    layers,
    output,
    query_key_norms,
    require_untied_output,
)
from tritgguf.converter.model.experts import expert_keys, expert_settings, expert_size, experts, require
from tritgguf.converter.model.rope_from_gguf import partial_rotation_setting
from tritgguf.converter.model.sliding import layer_types_setting, pattern_metadata, require_window

CLAMP = 7.0  # of an expert's gate from above, of its up from both sides; the model's code has the number in it
# What the graph assumes, by the key that could say otherwise.
ASSUMED = {
    "norm_topk_prob": (True, "divides the experts' scores by their sum"),
    "num_shared_experts": (0, "has no shared experts"),
    "first_k_dense_replace": (0, "has experts in every layer"),
    "moe_router_enable_expert_bias": (False, "adds no bias to the experts' scores"),
    "use_qk_norm": (True, "normalizes queries and keys"),
    "use_bias": (False, "adds no biases"),
    "swiglu_limit": (CLAMP, f"is written for activations that are clamped at {CLAMP:g}"),
}


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    embeddings = replace(embedding(config), source="model.word_embeddings.weight")
    return [embeddings, *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number),
        *query_key_norms(config, number),
        feed_forward_norm(config, number),
        *experts(config, number, expert_size(config)),
    ]


def keys(config: DecoderConfig, arch: str) -> Metadata:
    """Return the experts' keys, the layers that slide, and where each layer's experts clamp their activations."""
    return {
        **expert_keys(config, arch),
        Keys.LLM.EXPERT_FEED_FORWARD_LENGTH.format(arch=arch): uint32(expert_size(config)),
        Keys.LLM.SWIGLU_CLAMP_EXP.format(arch=arch): float32s([CLAMP] * config.n_layers),
        **pattern_metadata(config, arch),
    }


def settings(keys: Settings) -> ConfigJson:
    """Return config.json's settings from a GGUF file's keys: the way back of `keys`."""
    return {
        **expert_settings(keys),
        **layer_types_setting(keys),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        **partial_rotation_setting(keys),
        "nope_on_global_attention": True,
        "norm_topk_prob": True,
    }


def require_what_the_graph_assumes(config: DecoderConfig) -> None:
    """Raise UnsupportedError where config.json asks for something else."""
    for key, (value, why) in ASSUMED.items():
        require(config, key, (value,), why)
    if not config.flag("nope_on_global_attention"):
        raise UnsupportedError(
            "config.json: nope_on_global_attention is false, but llama.cpp's maple graph rotates only layers that slide"
        )


def require_sliding_layers(config: DecoderConfig) -> None:
    """Raise SourceError unless layer_types has layers that slide: only these are rotated, and the graph needs some."""
    require_window(config)
    if config.sliding_window is None:
        raise config.raw.wrong("layer_types", "full_attention or, at least once, sliding_attention for each layer")


ARCHITECTURE = Architecture(
    graph="maple",
    classes={"MapleForCausalLM": {}},
    tensors=tensors,
    extra_keys=keys,
    requires=(require_untied_output, require_what_the_graph_assumes, require_sliding_layers),
    settings=settings,
    abilities=frozenset({Ability.PARTIAL_ROTATION, Ability.SLIDING_LAYERS}),
)
