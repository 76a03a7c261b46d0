"""Phi-3 and Phi-4: q, k and v are one tensor, gate and up another; a part of each head may be rotated.

The graph has both sets of LongRoPE's factors. It uses NEOX rope, so rows keep their order.
"""

from __future__ import annotations

from gguf import MODEL_ARCH, MODEL_TENSOR

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import PARAMETERS, SCALING, Ability, DecoderConfig, rope_options
from tritgguf.converter.model.decoder import (
    attention_norm,
    embedding,
    feed_forward_norm,
    layers,
    linear,
    longrope_factors,
    output,
    require_heads_of_hidden_size,
)
from tritgguf.converter.model.rope_from_gguf import partial_rotation_setting

OLDER_NAMES_OF_LONGROPE = ("su", "yarn")  # as in transformers' Phi3Config


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *longrope_factors(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    hidden, ffn, queries = config.hidden_size, config.intermediate_size, config.query_size
    return [
        attention_norm(config, number),
        *linear(number, "self_attn.qkv_proj", MODEL_TENSOR.ATTN_QKV, (queries + 2 * config.key_size, hidden)),
        *linear(number, "self_attn.o_proj", MODEL_TENSOR.ATTN_OUT, (hidden, queries)),
        feed_forward_norm(config, number),
        *linear(number, "mlp.gate_up_proj", MODEL_TENSOR.FFN_UP, (2 * ffn, hidden)),
        *linear(number, "mlp.down_proj", MODEL_TENSOR.FFN_DOWN, (hidden, ffn)),
    ]


def with_longrope_s_name(keys: Settings) -> ConfigJson:
    """Return the keys with older names of LongRoPE replaced."""
    options = rope_options(keys)
    if (options.text("rope_type") or options.text("type")) not in OLDER_NAMES_OF_LONGROPE:
        return keys
    key = PARAMETERS if keys.has(PARAMETERS) else SCALING
    return {**keys, key: {**keys.object(key), "rope_type": "longrope"}}


PHI3 = {
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "use_sliding_window": True,  # Phi-3 has no such switch: a sliding_window always counts
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.PHI3,
    classes={"Phi3ForCausalLM": PHI3},
    tensors=tensors,
    requires=(require_heads_of_hidden_size,),
    respell=with_longrope_s_name,
    settings=partial_rotation_setting,
    abilities=frozenset({Ability.PARTIAL_ROTATION, Ability.BOTH_LONGROPE_SETS}),
)
