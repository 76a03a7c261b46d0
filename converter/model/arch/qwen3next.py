"""Qwen3-Next: linear attention (gated delta net) in most layers, experts in all, of which one computes for every token.

As in Qwen3.5, norms multiply by 1 + weight. A checkpoint has the rows of a linear attention's queries, keys, values and
gates key head by key head in one tensor; the file has them in two, all queries first, then all keys and all values, and
the gates apart. The graph takes the value heads in the checkpoint's order.
"""

from __future__ import annotations

import numpy as np
from gguf import MODEL_ARCH, MODEL_TENSOR, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import RowIndices
from tritgguf.converter.gguf_io.metadata import Metadata, uint32
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import MOST_IN_A_ROW, Ability, DecoderConfig
from tritgguf.converter.model.decoder import gguf_name, in_layer, linear, require_no_attention_bias
from tritgguf.converter.model.delta_net import (
    DeltaNet,
    decoder_tensors,
    delta_net_keys,
    delta_net_settings,
    recurrence,
    recurrence_norm,
    require_the_graph_s_epsilon,
    with_layer_types,
)
from tritgguf.converter.model.experts import (
    expert_keys,
    expert_settings,
    expert_size,
    experts,
    require_experts_in_every_layer,
    require_normalized_scores,
    shared_expert,
)
from tritgguf.converter.model.stored_forms import SomeRows


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return decoder_tensors(config, linear_attention, all_experts)


def all_experts(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of a layer's experts."""
    return [
        *experts(config, number, expert_size(config)),
        *shared_expert(config, number, shared_size(config)),
    ]


def linear_attention(config: DecoderConfig, net: DeltaNet, number: int) -> list[TensorSpec]:
    """Return the tensors of a linear attention."""
    hidden, module = config.hidden_size, in_layer(number, "linear_attn")
    mixed, (channels, gates) = f"{module}.in_proj_qkvz.weight", separate_rows(net)
    parts = [
        TensorSpec(
            f"{mixed} ({what})",
            gguf_name(tensor, number),
            (len(rows), hidden),
            "linear",
            stored=(SomeRows(mixed, rows, net.channels + net.value_size),),
        )
        for what, tensor, rows in (("q, k, v", MODEL_TENSOR.ATTN_QKV, channels), ("z", MODEL_TENSOR.ATTN_GATE, gates))
    ]
    small = gguf_name(MODEL_TENSOR.SSM_BETA_ALPHA, number)
    return [
        *parts,
        *recurrence(net, number),
        TensorSpec(f"{module}.in_proj_ba.weight", small, (2 * net.n_value_heads, hidden), "kept"),
        recurrence_norm(net, number),
        *linear(number, "linear_attn.out_proj", MODEL_TENSOR.SSM_OUT, (hidden, net.value_size)),
    ]


def separate_rows(net: DeltaNet) -> tuple[RowIndices, RowIndices]:
    """Return which rows of in_proj_qkvz are queries, then keys, then values, (channels,), and gates, (value_size,)."""
    numbers: RowIndices = np.arange(net.channels + net.value_size, dtype=np.int64)
    of_values = net.value_size // net.n_key_heads
    sizes = (net.head_dim, net.head_dim, of_values, of_values)
    *channels, gates = np.split(numbers.reshape(net.n_key_heads, -1), np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([part.ravel() for part in channels]), gates.ravel()


def shared_size(config: DecoderConfig) -> int:
    """Return the number of inner values of the expert that computes for every token."""
    return config.raw.integer("shared_expert_intermediate_size", most=MOST_IN_A_ROW)


def keys(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys of the experts and of the linear attention."""
    return {
        **expert_keys(config, arch),
        Keys.LLM.EXPERT_FEED_FORWARD_LENGTH.format(arch=arch): uint32(expert_size(config)),
        Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH.format(arch=arch): uint32(shared_size(config)),
        **delta_net_keys(config, arch),
    }


def settings(keys: Settings) -> ConfigJson:
    """Return config.json's settings from a GGUF file's keys: the way back of `keys`."""
    return {
        **expert_settings(keys),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length"),
        "norm_topk_prob": True,
        **delta_net_settings(keys),
    }


QWEN3_NEXT = {
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "intermediate_size": 5632,  # of layers without experts, of which the graph has none
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN3NEXT,
    classes={"Qwen3NextForCausalLM": QWEN3_NEXT},
    tensors=tensors,
    extra_keys=keys,
    requires=(
        require_the_graph_s_epsilon,
        require_no_attention_bias,
        require_experts_in_every_layer,
        require_normalized_scores,
    ),
    respell=with_layer_types,
    settings=settings,
    model_type="qwen3_next",
    abilities=frozenset({Ability.PARTIAL_ROTATION}),
)
