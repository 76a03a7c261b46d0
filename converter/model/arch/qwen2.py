"""Qwen2, Qwen2.5 and Qwen2.5-Coder: biases on q, k and v. Their graph uses NEOX rope, so rows keep their order."""

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
    require_heads_of_hidden_size,
)


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number, qkv_bias=True),
        feed_forward_norm(config, number),
        *feed_forward(config, number),
    ]


QWEN2 = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN2,
    classes={"Qwen2ForCausalLM": QWEN2},
    tensors=tensors,
    requires=(require_heads_of_hidden_size,),
)
