"""Mixtral: Llama's graph with experts in every layer, which the number of experts turns on."""

from __future__ import annotations

from functools import partial

from gguf import MODEL_ARCH

from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward_norm,
    layers,
    output,
    pair_neighbours,
    rope_divisors,
)
from tritgguf.converter.model.experts import ExpertNames, expert_keys, expert_settings, experts

NAMES = ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2")


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *rope_divisors(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number, row_order=pair_neighbours),
        feed_forward_norm(config, number),
        *experts(config, number, config.intermediate_size, NAMES),
    ]


MIXTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "use_sliding_window": True,  # as Mistral, Mixtral has no such switch: a sliding_window always counts
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.LLAMA,
    classes={"MixtralForCausalLM": MIXTRAL},
    tensors=tensors,
    extra_keys=expert_keys,
    settings=partial(expert_settings, count="num_local_experts"),
    honours_scales=True,
)
