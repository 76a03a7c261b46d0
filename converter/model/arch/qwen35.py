"""Qwen3.5 (dense, text): most layers have a linear attention (gated delta net), every fourth a gated full attention.

Its norms multiply by 1 + weight, so the file's weights are one larger. The value heads of a linear attention belong to
key heads in groups: transformers has each group's value heads side by side, the graph has the first of all groups, then
the second and so on. So rows, and the columns of out_proj, are reordered where there are several per key head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from gguf import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import Float32Array, RowIndices
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, booleans, int32s, uint32
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import MOST_IN_A_ROW, MOST_LAYERS, Ability, DecoderConfig
from tritgguf.converter.model.decoder import (
    attention_norm,
    embedding,
    feed_forward,
    gguf_name,
    in_layer,
    layers,
    linear,
    norm,
    output,
    query_key_norms,
    require_no_attention_bias,
)
from tritgguf.converter.model.derived import ComputedTensor, with_columns
from tritgguf.converter.model.sliding import FULL

LINEAR = "linear_attention"
SECTIONS = [11, 11, 10]  # which rotations belong to time, height and width in a picture; in a text all are the same

EPSILON = 1e-6  # `l2norm` of transformers' modeling_qwen3_5.py


@dataclass(frozen=True)
class DeltaNet:
    """The sizes of the linear attention of every layer that has one."""

    n_key_heads: int
    n_value_heads: int
    head_dim: int
    kernel: int

    @property
    def key_size(self) -> int:
        """The size of all heads' keys of one token."""
        return self.n_key_heads * self.head_dim

    @property
    def value_size(self) -> int:
        """The size of all heads' values of one token."""
        return self.n_value_heads * self.head_dim

    def value_order(self, head_dim: int) -> RowIndices:
        """Return the graph's order of the value heads, with `head_dim` values each: (n_value_heads * head_dim,)."""
        numbers: RowIndices = np.arange(self.n_value_heads * head_dim, dtype=np.int64)
        numbers = numbers.reshape(self.n_key_heads, -1, head_dim).swapaxes(0, 1).ravel()
        return numbers

    def channel_order(self) -> RowIndices:
        """Return the order of queries, keys and values, of which only the values' changes."""
        first = 2 * self.key_size
        return np.concatenate([np.arange(first, dtype=np.int64), first + self.value_order(self.head_dim)])


def delta_net(config: DecoderConfig) -> DeltaNet:
    """Read the sizes of the linear attention; raise UnsupportedError where the graph can't compute them."""
    keys = config.raw
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_conv_kernel_dim")
    net = DeltaNet(*(keys.integer(name, most=MOST_IN_A_ROW) for name in names))
    value_dim = keys.integer("linear_value_head_dim", most=MOST_IN_A_ROW)
    if value_dim != net.head_dim:
        raise UnsupportedError(
            f"config.json: linear_value_head_dim is {value_dim}, but in llama.cpp's qwen35 graph it is "
            f"linear_key_head_dim, {net.head_dim}"
        )
    if net.n_value_heads % net.n_key_heads:
        raise keys.wrong("linear_num_value_heads", f"a multiple of linear_num_key_heads {net.n_key_heads}")
    if max(net.key_size, net.value_size) > MOST_IN_A_ROW:
        raise keys.wrong("linear_key_head_dim", f"at most {MOST_IN_A_ROW} together for all heads")
    return net


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    net, linears = delta_net(config), linear_layers(config)

    def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
        hidden = config.hidden_size
        return [
            attention_norm(config, number),
            *(linear_attention(config, net, number) if linears[number] else full_attention(config, number)),
            norm(number, "post_attention_layernorm", MODEL_TENSOR.ATTN_POST_NORM, hidden),
            *feed_forward(config, number),
        ]

    specs = [embedding(config), *layers(config, layer), *output(config)]
    shifted = (spec.role == "norm" and not spec.source.endswith("linear_attn.norm.weight") for spec in specs)
    return [replace(spec, plus=1.0) if shift else spec for spec, shift in zip(specs, shifted, strict=True)]


def full_attention(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of a full attention; q_proj has each head's query and then its gate."""
    hidden, q, kv = config.hidden_size, config.query_size, config.key_size
    return [
        *linear(number, "self_attn.q_proj", MODEL_TENSOR.ATTN_Q, (2 * q, hidden)),
        *linear(number, "self_attn.k_proj", MODEL_TENSOR.ATTN_K, (kv, hidden)),
        *linear(number, "self_attn.v_proj", MODEL_TENSOR.ATTN_V, (kv, hidden)),
        *linear(number, "self_attn.o_proj", MODEL_TENSOR.ATTN_OUT, (hidden, q)),
        *query_key_norms(config, number),
    ]


def linear_attention(config: DecoderConfig, net: DeltaNet, number: int) -> list[TensorSpec]:
    """Return the tensors of a linear attention."""
    hidden, channels = config.hidden_size, 2 * net.key_size + net.value_size
    values, heads = net.value_order(net.head_dim), net.value_order(1)
    module = in_layer(number, "linear_attn")
    (out,) = linear(number, "linear_attn.out_proj", MODEL_TENSOR.SSM_OUT, (hidden, net.value_size))
    convolution = TensorSpec(
        f"{module}.conv1d.weight",
        gguf_name(MODEL_TENSOR.SSM_CONV1D, number),
        (channels, net.kernel),
        "kept",
        net.channel_order(),
        stored_shape=(channels, 1, net.kernel),
        derive=lambda stored: ComputedTensor(stored.name, (channels, net.kernel), stored, lambda values: values),
    )
    small = [
        TensorSpec(f"{module}.{name}.weight", gguf_name(tensor, number), (net.n_value_heads, hidden), "kept", heads)
        for name, tensor in (("in_proj_b", MODEL_TENSOR.SSM_BETA), ("in_proj_a", MODEL_TENSOR.SSM_ALPHA))
    ]
    per_head = (net.n_value_heads,)
    decay = partial(ComputedTensor, f"{module}.A_log", per_head, compute=minus_exponential)
    return [
        *linear(number, "linear_attn.in_proj_qkv", MODEL_TENSOR.ATTN_QKV, (channels, hidden), rows=net.channel_order()),
        *linear(number, "linear_attn.in_proj_z", MODEL_TENSOR.ATTN_GATE, (net.value_size, hidden), rows=values),
        convolution,
        TensorSpec(f"{module}.dt_bias", gguf_name(MODEL_TENSOR.SSM_DT, number, "bias"), per_head, "bias", heads),
        TensorSpec(
            f"{module}.A_log",
            TENSOR_NAMES[MODEL_TENSOR.SSM_A].format(bid=number),
            per_head,
            "kept",
            heads,
            derive=decay,
        ),
        *small,
        norm(number, "linear_attn.norm", MODEL_TENSOR.SSM_NORM, net.head_dim),
        replace(out, derive=lambda stored: with_columns(stored, values, net.head_dim)),
    ]


def minus_exponential(values: Float32Array) -> Float32Array:
    """Return the rate of decay, as transformers computes it of A_log."""
    return np.negative(np.exp(values))


def linear_layers(config: DecoderConfig) -> list[bool]:
    """Return for each layer whether its attention is linear; raise UnsupportedError for another type of layer."""
    types = config.raw.texts("layer_types") or []
    if len(types) != config.n_layers:
        raise config.raw.wrong("layer_types", f"a list of {config.n_layers} texts")
    for kind in types:
        if kind not in (FULL, LINEAR):
            raise UnsupportedError(
                f"config.json: layer_types has {kind!r:.80}; llama.cpp's qwen35 graph has {FULL} and {LINEAR}"
            )
    return [kind == LINEAR for kind in types]


def require_the_graph_s_epsilon(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the norms have another epsilon than the one in the linear attention."""
    if config.rms_norm_eps != EPSILON:
        raise UnsupportedError(
            f"config.json: rms_norm_eps is {config.rms_norm_eps:g}, which llama.cpp's qwen35 graph adds to the squares "
            f"of queries and keys of a linear attention as well; transformers adds {EPSILON:g} there"
        )


def with_layer_types(keys: Settings) -> ConfigJson:
    """Return the keys with layer_types, which follow from full_attention_interval where they are missing."""
    if keys.has("layer_types"):
        return keys
    interval = keys.integer("full_attention_interval", 4)
    n_layers = keys.integer("num_hidden_layers", most=MOST_LAYERS)
    return {**keys, "layer_types": [LINEAR if number % interval else FULL for number in range(1, n_layers + 1)]}


def sizes(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys of the linear attention, of the layers that have it, and of the rotation's sections."""
    net, options = delta_net(config), config.rope.options
    sections = options.get("mrope_section", SECTIONS)
    if not isinstance(sections, list) or len(sections) != 3 or any(type(n) is not int or n < 0 for n in sections):
        raise options.wrong("mrope_section", "a list of 3 integers")
    if not 0 < sum(sections) <= config.head_dim:
        raise options.wrong("mrope_section", f"a list of numbers that are {config.head_dim} or less together")
    return {
        Keys.SSM.CONV_KERNEL.format(arch=arch): uint32(net.kernel),
        Keys.SSM.STATE_SIZE.format(arch=arch): uint32(net.head_dim),
        Keys.SSM.GROUP_COUNT.format(arch=arch): uint32(net.n_key_heads),
        Keys.SSM.TIME_STEP_RANK.format(arch=arch): uint32(net.n_value_heads),
        Keys.SSM.INNER_SIZE.format(arch=arch): uint32(net.value_size),
        f"{arch}.attention.recurrent_layers": booleans(linear_layers(config)),
        Keys.Rope.DIMENSION_SECTIONS.format(arch=arch): int32s([*sections, 0]),
    }


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
    extra_keys=sizes,
    requires=(require_the_graph_s_epsilon, require_no_attention_bias),
    respell=with_layer_types,
    abilities=frozenset({Ability.PARTIAL_ROTATION}),
)
