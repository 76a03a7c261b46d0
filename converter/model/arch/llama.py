"""Llama 1 to 3.2 and the models that share its graph: Mistral, SmolLM, TinyLlama, Falcon3, TriLM."""

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
    pair_neighbours,
    rope_divisors,
)


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *rope_divisors(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    bias = config.flag("attention_bias")
    return [
        attention_norm(config, number),
        *attention(config, number, qkv_bias=bias, output_bias=bias, row_order=pair_neighbours),
        feed_forward_norm(config, number),
        *feed_forward(config, number, bias=config.flag("mlp_bias")),
    ]


MISTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "use_sliding_window": True,  # Mistral has no such switch: a sliding_window always counts
    "sliding_window": 4096,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.LLAMA,
    classes={"LlamaForCausalLM": {}, "LLaMAForCausalLM": {}, "MistralForCausalLM": MISTRAL},
    tensors=tensors,
    honours_scales=True,
)
