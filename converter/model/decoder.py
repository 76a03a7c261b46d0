"""The parts that architectures are composed of: tensors of a decoder with their names in checkpoint and GGUF.

Each helper returns the specs of one part, named as transformers' Llama names them, for the files in arch/ to put in
order. A part that no other architecture has is written as a `TensorSpec` in the file of its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from gguf import MODEL_TENSOR, TENSOR_NAMES

from tritgguf.converter.core.tensors import RowIndices
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.rope import LONGROPE_SETS, ROPE_FREQS, longrope_divisors, rotation

RowOrder = Callable[[int, int], RowIndices]  # (n_heads, head_dim) → the order of n_heads * head_dim rows


# --- tensors ------------------------------------------------------------------------------------------------------


def embedding(config: DecoderConfig) -> TensorSpec:
    """Return the token embeddings, (vocab_size, hidden_size)."""
    shape = (config.vocab_size, config.hidden_size)
    return TensorSpec("model.embed_tokens.weight", gguf_name(MODEL_TENSOR.TOKEN_EMBD), shape, "embedding")


def rope_divisors(config: DecoderConfig) -> list[TensorSpec]:
    """Return rope_freqs.weight, (head_dim / 2,), where the rotation needs it; only for graphs that divide by it.

    Raises UnsupportedError where neither keys nor divisors express the rotation.
    """
    divisors = rotation(config, config.graph, reads_divisors=True).divisors
    return [] if divisors is None else [TensorSpec("config.json", ROPE_FREQS, divisors.shape, "rope", data=divisors)]


def longrope_factors(config: DecoderConfig) -> list[TensorSpec]:
    """Return LongRoPE's two sets of divisors, (rotated_size / 2,), for graphs that choose one by the context's size."""
    if config.rope.kind != "longrope":
        return []
    divisors = {key: longrope_divisors(config, key) for key in LONGROPE_SETS}
    return [
        TensorSpec(f"config.json: {key}", LONGROPE_SETS[key], values.shape, "rope", data=values)
        for key, values in divisors.items()
    ]


def layers(config: DecoderConfig, layer: Callable[[DecoderConfig, int], Iterable[TensorSpec]]) -> list[TensorSpec]:
    """Return the tensors of every layer; `layer` gets the config and the layer's number."""
    return [spec for number in range(config.n_layers) for spec in layer(config, number)]


def output(config: DecoderConfig) -> list[TensorSpec]:
    """Return the last norm, and the output layer (vocab_size, hidden_size) where it isn't tied to the embeddings."""
    specs = [TensorSpec("model.norm.weight", gguf_name(MODEL_TENSOR.OUTPUT_NORM), (config.hidden_size,), "norm")]
    if not config.tied:
        shape = (config.vocab_size, config.hidden_size)
        specs.append(TensorSpec("lm_head.weight", gguf_name(MODEL_TENSOR.OUTPUT), shape, "output"))
    return specs


def norm(layer: int, module: str, tensor: MODEL_TENSOR, size: int) -> TensorSpec:
    """Return the norm `module` of a layer, (size,)."""
    return TensorSpec(f"{in_layer(layer, module)}.weight", gguf_name(tensor, layer), (size,), "norm")


def attention_norm(config: DecoderConfig, layer: int) -> TensorSpec:
    """Return the norm before the attention."""
    return norm(layer, "input_layernorm", MODEL_TENSOR.ATTN_NORM, config.hidden_size)


def feed_forward_norm(config: DecoderConfig, layer: int) -> TensorSpec:
    """Return the norm before the feed-forward part."""
    return norm(layer, "post_attention_layernorm", MODEL_TENSOR.FFN_NORM, config.hidden_size)


def linear(
    layer: int,
    module: str,
    tensor: MODEL_TENSOR,
    shape: tuple[int, int],
    *,
    bias: bool = False,
    rows: RowIndices | None = None,
) -> list[TensorSpec]:
    """Return the weight of the linear layer `module`, (n_outputs, n_inputs), and its bias, (n_outputs,), if any.

    `rows` is the order that the graph wants the outputs in.
    """
    source = in_layer(layer, module)
    specs = [TensorSpec(f"{source}.weight", gguf_name(tensor, layer), shape, "linear", rows)]
    if bias:
        specs.append(TensorSpec(f"{source}.bias", gguf_name(tensor, layer, "bias"), shape[:1], "bias", rows))
    return specs


def attention(
    config: DecoderConfig,
    layer: int,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    row_order: RowOrder | None = None,
) -> list[TensorSpec]:
    """Return the projections q, k, v and o; `row_order` orders the rows of q and k, which the graph rotates."""
    q, kv = config.query_size, config.key_size
    q_rows, k_rows = (row_order(n, config.head_dim) if row_order else None for n in (config.n_heads, config.n_kv_heads))
    hidden = config.hidden_size
    return [
        *linear(layer, "self_attn.q_proj", MODEL_TENSOR.ATTN_Q, (q, hidden), bias=qkv_bias, rows=q_rows),
        *linear(layer, "self_attn.k_proj", MODEL_TENSOR.ATTN_K, (kv, hidden), bias=qkv_bias, rows=k_rows),
        *linear(layer, "self_attn.v_proj", MODEL_TENSOR.ATTN_V, (kv, hidden), bias=qkv_bias),
        *linear(layer, "self_attn.o_proj", MODEL_TENSOR.ATTN_OUT, (hidden, q), bias=output_bias),
    ]


def query_key_norms(config: DecoderConfig, layer: int) -> list[TensorSpec]:
    """Return the norms of each head's queries and keys, (head_dim,)."""
    return [
        norm(layer, "self_attn.q_norm", MODEL_TENSOR.ATTN_Q_NORM, config.head_dim),
        norm(layer, "self_attn.k_norm", MODEL_TENSOR.ATTN_K_NORM, config.head_dim),
    ]


def feed_forward(config: DecoderConfig, layer: int, *, bias: bool = False) -> list[TensorSpec]:
    """Return the projections gate, up and down of a gated feed-forward part."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return [
        *linear(layer, "mlp.gate_proj", MODEL_TENSOR.FFN_GATE, (inner, hidden), bias=bias),
        *linear(layer, "mlp.up_proj", MODEL_TENSOR.FFN_UP, (inner, hidden), bias=bias),
        *linear(layer, "mlp.down_proj", MODEL_TENSOR.FFN_DOWN, (hidden, inner), bias=bias),
    ]


# --- names and rows -----------------------------------------------------------------------------------------------


def in_layer(layer: int, module: str) -> str:
    """Return the checkpoint's name of a module in a layer."""
    return f"model.layers.{layer}.{module}"


def gguf_name(tensor: MODEL_TENSOR, layer: int | None = None, kind: str = "weight") -> str:
    """Return a tensor's name in GGUF.

    >>> gguf_name(MODEL_TENSOR.ATTN_Q, 3, "bias")
    'blk.3.attn_q.bias'
    """
    return f"{TENSOR_NAMES[tensor].format(bid=layer)}.{kind}"


@lru_cache(maxsize=2)  # of q and of k: the same in every layer
def pair_neighbours(n_heads: int, head_dim: int) -> RowIndices:
    """Return the row order that puts values rotated together side by side, int64 (n_heads * head_dim,).

    transformers rotates value i of a head with value i + head_dim/2. ggml's NORM rope, which the llama graph uses,
    rotates neighbours 2i and 2i + 1; its NEOX rope pairs as transformers does, and needs no other order.
    """
    rows: RowIndices = np.arange(n_heads * head_dim, dtype=np.int64)
    rows = rows.reshape(n_heads, 2, head_dim // 2).swapaxes(1, 2).ravel()
    return rows


# --- what a graph requires ----------------------------------------------------------------------------------------


def require_heads_of_hidden_size(config: DecoderConfig) -> None:
    """Raise UnsupportedError unless the heads together are as wide as the hidden state."""
    if config.query_size != config.hidden_size:
        raise UnsupportedError(
            f"config.json: num_attention_heads {config.n_heads} times head_dim {config.head_dim} isn't hidden_size "
            f"{config.hidden_size}, which llama.cpp's {config.graph} graph demands"
        )


def require_tied_output(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the output layer isn't tied to the embeddings."""
    if not config.tied:
        raise UnsupportedError(
            f"config.json: tie_word_embeddings is false, but llama.cpp's {config.graph} graph has no output layer of "
            "its own"
        )


def require_untied_output(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the output layer is tied to the embeddings."""
    if config.tied:
        raise UnsupportedError(
            f"config.json: tie_word_embeddings is true, but llama.cpp's {config.graph} graph needs an output layer of "
            "its own"
        )


def require_no_attention_bias(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the attention has biases."""
    if config.flag("attention_bias"):
        raise UnsupportedError(
            "config.json: attention_bias is true, which gives o_proj a bias that llama.cpp's "
            f"{config.graph} graph doesn't add"
        )
