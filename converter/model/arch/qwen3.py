"""Qwen3 (dense): norms on q and k, a free head_dim. Its graph uses NEOX rope, so rows keep their order."""

from __future__ import annotations

from gguf import MODEL_ARCH

from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward,
    feed_forward_norm,
    layers,
    output,
    query_key_norms,
    require_no_attention_bias,
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
        *feed_forward(config, number),
    ]


QWEN3 = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128, "sliding_window": 4096}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN3,
    classes={"Qwen3ForCausalLM": QWEN3},
    tensors=tensors,
    requires=(require_no_attention_bias,),
    honours_scales=True,
)
