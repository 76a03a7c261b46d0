"""Qwen3-MoE: as Qwen3, with experts in every layer, whose scores add up to one."""

from __future__ import annotations

from gguf import MODEL_ARCH, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.gguf_io.metadata import Metadata, uint32
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward_norm,
    layers,
    output,
    query_key_norms,
    require_no_attention_bias,
)
from tritgguf.converter.model.experts import (
    expert_keys,
    expert_settings,
    expert_size,
    experts,
    require_experts_in_every_layer,
    require_normalized_scores,
)


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *layers(config, layer), *output(config)]


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
    """Return the numbers and the size of the experts."""
    size = {Keys.LLM.EXPERT_FEED_FORWARD_LENGTH.format(arch=arch): uint32(expert_size(config))}
    return {**expert_keys(config, arch), **size}


def settings(keys: Settings) -> ConfigJson:
    """Return config.json's settings from a GGUF file's keys: the way back of `keys`."""
    size = keys.integer("expert_feed_forward_length")
    return {**expert_settings(keys), "moe_intermediate_size": size, "norm_topk_prob": True}


QWEN3_MOE = {
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "intermediate_size": 6144,  # of layers without experts, of which the graph has none
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN3MOE,
    classes={"Qwen3MoeForCausalLM": QWEN3_MOE},
    tensors=tensors,
    extra_keys=keys,
    requires=(require_no_attention_bias, require_experts_in_every_layer, require_normalized_scores),
    settings=settings,
    model_type="qwen3_moe",
    honours_scales=True,
)
