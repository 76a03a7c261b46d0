"""Qwen3.5 (dense, text): most layers have a linear attention (gated delta net), every fourth a gated full attention.

Its norms multiply by 1 + weight, so the file's weights are one larger. The value heads of a linear attention belong to
key heads in groups: transformers has each group's value heads side by side, the graph has the first of all groups, then
the second and so on. So rows, and the columns of out_proj, are reordered where there are several per key head.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gguf import MODEL_ARCH, MODEL_TENSOR, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import RowIndices
from tritgguf.converter.gguf_io.metadata import Metadata, int32s
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import SCALING, Ability, DecoderConfig
from tritgguf.converter.model.decoder import feed_forward, gguf_name, in_layer, linear, require_no_attention_bias
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
from tritgguf.converter.model.derived import reordered_columns

SECTIONS = [11, 11, 10]  # which rotations belong to time, height and width in a picture; in a text all are the same


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return decoder_tensors(config, linear_attention, feed_forward)


def linear_attention(config: DecoderConfig, net: DeltaNet, number: int) -> list[TensorSpec]:
    """Return the tensors of a linear attention."""
    hidden = config.hidden_size
    channels, values, heads = channel_order(net), value_order(net, net.head_dim), value_order(net, 1)
    module = in_layer(number, "linear_attn")
    (out,) = linear(number, "linear_attn.out_proj", MODEL_TENSOR.SSM_OUT, (hidden, net.value_size))
    small = [
        TensorSpec(f"{module}.{name}.weight", gguf_name(tensor, number), (net.n_value_heads, hidden), "kept", heads)
        for name, tensor in (("in_proj_b", MODEL_TENSOR.SSM_BETA), ("in_proj_a", MODEL_TENSOR.SSM_ALPHA))
    ]
    return [
        *linear(number, "linear_attn.in_proj_qkv", MODEL_TENSOR.ATTN_QKV, (net.channels, hidden), rows=channels),
        *linear(number, "linear_attn.in_proj_z", MODEL_TENSOR.ATTN_GATE, (net.value_size, hidden), rows=values),
        *recurrence(net, number, channels=channels, heads=heads),
        *small,
        recurrence_norm(net, number),
        replace(out, derive=reordered_columns(values, net.head_dim)),
    ]


def value_order(net: DeltaNet, head_dim: int) -> RowIndices:
    """Return the graph's order of the value heads, with `head_dim` values each: (n_value_heads * head_dim,)."""
    numbers: RowIndices = np.arange(net.n_value_heads * head_dim, dtype=np.int64)
    numbers = numbers.reshape(net.n_key_heads, -1, head_dim).swapaxes(0, 1).ravel()
    return numbers


def channel_order(net: DeltaNet) -> RowIndices:
    """Return the order of queries, keys and values, of which only the values' changes."""
    first = 2 * net.key_size
    return np.concatenate([np.arange(first, dtype=np.int64), first + value_order(net, net.head_dim)])


def keys(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys of the linear attention, of the layers that have it, and of the rotation's sections."""
    options = config.rope.options
    sections = options.get("mrope_section", SECTIONS)
    if not isinstance(sections, list) or len(sections) != 3 or any(type(n) is not int or n < 0 for n in sections):
        raise options.wrong("mrope_section", "a list of 3 integers")
    if not 0 < sum(sections) <= config.head_dim:
        raise options.wrong("mrope_section", f"a list of numbers that are {config.head_dim} or less together")
    return {
        **delta_net_keys(config, arch),
        Keys.Rope.DIMENSION_SECTIONS.format(arch=arch): int32s([*sections, 0]),
    }


def settings(keys: Settings) -> ConfigJson:
    """Return config.json's settings from a GGUF file's keys: the way back of `keys`."""
    sections = keys.get("rope.dimension_sections")
    if not isinstance(sections, list) or len(sections) != 4:
        raise keys.wrong("rope.dimension_sections", "a list of 4 integers")
    rotation = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": sections[:3]}
    return {**delta_net_settings(keys), SCALING: rotation}


QWEN35 = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN35,
    classes={"Qwen3_5ForCausalLM": QWEN35},
    tensors=tensors,
    extra_keys=keys,
    requires=(require_the_graph_s_epsilon, require_no_attention_bias),
    respell=with_layer_types,
    settings=settings,
    model_type="qwen3_5_text",
    abilities=frozenset({Ability.PARTIAL_ROTATION}),
)
