"""Parts of decoders with gated delta nets: linear attention in most layers, gated full attention in the others.

Their norms multiply by 1 + weight, but for the one in the linear attention, so the file's weights are one larger. The
value heads of a linear attention belong to key heads in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from gguf import MODEL_TENSOR, TENSOR_NAMES, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import Float32Array, RowIndices
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, booleans, uint32
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.config import MOST_IN_A_ROW, MOST_LAYERS, DecoderConfig
from tritgguf.converter.model.decoder import (
    attention_norm,
    embedding,
    gguf_name,
    in_layer,
    layers,
    linear,
    norm,
    output,
    query_key_norms,
)
from tritgguf.converter.model.derived import ComputedTensor, Derivation, reshaped
from tritgguf.converter.model.rope_from_gguf import partial_rotation_setting
from tritgguf.converter.model.sliding import FULL

LINEAR = "linear_attention"
INTERVAL = "full_attention_interval"
FLOAT32_DIGITS = 24  # of a float32's fraction, in binary
EPSILON = 1e-6  # `l2norm` of transformers' modeling_qwen3_next.py and modeling_qwen3_5.py


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

    @property
    def channels(self) -> int:
        """The size of all heads' queries, keys and values of one token, which a convolution mixes with earlier ones."""
        return 2 * self.key_size + self.value_size


def delta_net(config: DecoderConfig) -> DeltaNet:
    """Read the sizes of the linear attention; raise UnsupportedError where the graph can't compute them."""
    keys = config.raw
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_conv_kernel_dim")
    net = DeltaNet(*(keys.integer(name, most=MOST_IN_A_ROW) for name in names))
    value_dim = keys.integer("linear_value_head_dim", most=MOST_IN_A_ROW)
    if value_dim != net.head_dim:
        raise UnsupportedError(
            f"config.json: linear_value_head_dim is {value_dim}, but in llama.cpp's {config.graph} graph it is "
            f"linear_key_head_dim, {net.head_dim}"
        )
    if net.n_value_heads % net.n_key_heads:
        raise keys.wrong("linear_num_value_heads", f"a multiple of linear_num_key_heads {net.n_key_heads}")
    if max(net.key_size, net.value_size) > MOST_IN_A_ROW:
        raise keys.wrong("linear_key_head_dim", f"at most {MOST_IN_A_ROW} together for all heads")
    return net


# --- tensors ------------------------------------------------------------------------------------------------------


def decoder_tensors(
    config: DecoderConfig,
    linear_attention: Callable[[DecoderConfig, DeltaNet, int], list[TensorSpec]],
    feed_forward: Callable[[DecoderConfig, int], list[TensorSpec]],
) -> list[TensorSpec]:
    """Return the tensors of a file, in order, of these parts of a layer, which get the layer's number."""
    net, linears = delta_net(config), linear_layers(config)

    def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
        return [
            attention_norm(config, number),
            *(linear_attention(config, net, number) if linears[number] else _gated_attention(config, number)),
            norm(number, "post_attention_layernorm", MODEL_TENSOR.ATTN_POST_NORM, config.hidden_size),
            *feed_forward(config, number),
        ]

    return _with_shifted_norms([embedding(config), *layers(config, layer), *output(config)])


def _gated_attention(config: DecoderConfig, layer: int) -> list[TensorSpec]:
    """Return the tensors of a full attention; q_proj has each head's query and then its gate."""
    hidden, q, kv = config.hidden_size, config.query_size, config.key_size
    return [
        *linear(layer, "self_attn.q_proj", MODEL_TENSOR.ATTN_Q, (2 * q, hidden)),
        *linear(layer, "self_attn.k_proj", MODEL_TENSOR.ATTN_K, (kv, hidden)),
        *linear(layer, "self_attn.v_proj", MODEL_TENSOR.ATTN_V, (kv, hidden)),
        *linear(layer, "self_attn.o_proj", MODEL_TENSOR.ATTN_OUT, (hidden, q)),
        *query_key_norms(config, layer),
    ]


def recurrence(
    net: DeltaNet, layer: int, *, channels: RowIndices | None = None, heads: RowIndices | None = None
) -> list[TensorSpec]:
    """Return the convolution of a linear attention, its time steps' bias and its rates of decay.

    `channels` and `heads` are the graph's order of queries, keys and values, and of the value heads.
    """
    module, kernel, per_head = in_layer(layer, "linear_attn"), (net.channels, net.kernel), (net.n_value_heads,)
    rates, in_file = f"{module}.A_log", TENSOR_NAMES[MODEL_TENSOR.SSM_A].format(bid=layer)
    return [
        TensorSpec(
            f"{module}.conv1d.weight",
            gguf_name(MODEL_TENSOR.SSM_CONV1D, layer),
            kernel,
            "kept",
            channels,
            stored_shape=(convolved := (net.channels, 1, net.kernel)),
            derive=reshaped(f"{module}.conv1d.weight", convolved, kernel),
        ),
        TensorSpec(f"{module}.dt_bias", gguf_name(MODEL_TENSOR.SSM_DT, layer, "bias"), per_head, "bias", heads),
        TensorSpec(
            rates,
            in_file,
            per_head,
            "kept",
            heads,
            derive=Derivation(
                made=partial(ComputedTensor, rates, per_head, compute=minus_exponential),
                undone=partial(ComputedTensor, rates, per_head, compute=partial(logarithm_of_minus, name=in_file)),
            ),
        ),
    ]


def recurrence_norm(net: DeltaNet, layer: int) -> TensorSpec:
    """Return the norm of each value head of a linear attention, (head_dim,)."""
    return norm(layer, "linear_attn.norm", MODEL_TENSOR.SSM_NORM, net.head_dim)


def minus_exponential(values: Float32Array) -> Float32Array:
    """Return the rates of decay of A_log, rounded from float64: numpy's float32 `exp` differs from CPU to CPU."""
    return np.negative(np.exp(values.astype(np.float64))).astype(np.float32)


def logarithm_of_minus(rates: Float32Array, name: str) -> Float32Array:
    """Return A_log of the rates of decay in the file's tensor `name`: the way back of `minus_exponential`.

    Several floats may have the same rate; the one with the fewest binary digits is taken, since checkpoints store few.
    Where none has it, the result is the float next to the logarithm. Raises SourceError for a rate that isn't negative.
    """
    if not (rates < 0).all():
        raise SourceError(f"{name}: rates of decay must be negative, found {rates.max():g}, which is no -exp(A_log)")
    logarithms = np.log(-rates.astype(np.float64))
    found = logarithms.astype(np.float32)
    neighbours = [np.nextafter(found, np.float32(limit)) for limit in (-np.inf, np.inf)]
    fractions, exponents = np.frexp(logarithms)
    rounded = [
        np.ldexp(np.round(np.ldexp(fractions, digits)), exponents - digits).astype(np.float32)
        for digits in range(FLOAT32_DIGITS, 0, -1)
    ]
    for candidate in (*neighbours, *rounded):
        np.copyto(found, candidate, where=minus_exponential(candidate) == rates)
    return found


def _with_shifted_norms(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the tensors with one added to the norms' weights, but for the norms of linear attentions."""
    shifted = [spec.role == "norm" and not spec.source.endswith("linear_attn.norm.weight") for spec in specs]
    return [replace(spec, plus=1.0) if shift else spec for spec, shift in zip(specs, shifted, strict=True)]


# --- keys ---------------------------------------------------------------------------------------------------------


def delta_net_keys(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys of the linear attention, and which layers have it."""
    net = delta_net(config)
    return {
        Keys.SSM.CONV_KERNEL.format(arch=arch): uint32(net.kernel),
        Keys.SSM.STATE_SIZE.format(arch=arch): uint32(net.head_dim),
        Keys.SSM.GROUP_COUNT.format(arch=arch): uint32(net.n_key_heads),
        Keys.SSM.TIME_STEP_RANK.format(arch=arch): uint32(net.n_value_heads),
        Keys.SSM.INNER_SIZE.format(arch=arch): uint32(net.value_size),
        f"{arch}.attention.recurrent_layers": booleans(linear_layers(config)),
    }


def delta_net_settings(keys: Settings) -> ConfigJson:
    """Return config.json's settings from a GGUF file's keys: the way back of `delta_net_keys`, and of the rotation."""
    head_dim = keys.integer("ssm.state_size")
    return {
        "linear_conv_kernel_dim": keys.integer("ssm.conv_kernel"),
        "linear_num_key_heads": keys.integer("ssm.group_count"),
        "linear_num_value_heads": keys.integer("ssm.time_step_rank"),
        "linear_key_head_dim": head_dim,
        "linear_value_head_dim": head_dim,
        "layer_types": _types_of_layers(keys),
        **partial_rotation_setting(keys),
    }


def _types_of_layers(keys: Settings) -> list[str]:
    """Return layer_types of a GGUF file's keys; llama.cpp's files may have the interval alone."""
    n_layers, linear = keys.integer("block_count", most=MOST_LAYERS), keys.get("attention.recurrent_layers")
    if isinstance(linear, list):
        return [LINEAR if is_linear else FULL for is_linear in linear]
    return types_by_interval(n_layers, keys.integer(INTERVAL, 4))


def types_by_interval(n_layers: int, interval: int) -> list[str]:
    """Return layer_types where every layer whose number is a multiple of `interval`, from 1 on, is a full attention."""
    return [LINEAR if number % interval else FULL for number in range(1, n_layers + 1)]


def linear_layers(config: DecoderConfig) -> list[bool]:
    """Return for each layer whether its attention is linear; raise UnsupportedError for another type of layer."""
    types = config.raw.texts("layer_types") or []
    if len(types) != config.n_layers:
        raise config.raw.wrong("layer_types", f"a list of {config.n_layers} texts")
    for kind in types:
        if kind not in (FULL, LINEAR):
            raise UnsupportedError(
                f"config.json: layer_types has {kind!r:.80}; llama.cpp's {config.graph} graph has {FULL} and {LINEAR}"
            )
    return [kind == LINEAR for kind in types]


def with_layer_types(keys: Settings) -> ConfigJson:
    """Return the keys with layer_types, which follow from full_attention_interval where they are missing."""
    if keys.has("layer_types"):
        return keys
    n_layers = keys.integer("num_hidden_layers", most=MOST_LAYERS)
    return {**keys, "layer_types": types_by_interval(n_layers, keys.integer(INTERVAL, 4))}


def require_the_graph_s_epsilon(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the norms have another epsilon than the one in the linear attention."""
    if config.rms_norm_eps != EPSILON:
        raise UnsupportedError(
            f"config.json: rms_norm_eps is {config.rms_norm_eps:g}, which llama.cpp's {config.graph} graph adds to the "
            f"squares of queries and keys of a linear attention as well; transformers adds {EPSILON:g} there"
        )
