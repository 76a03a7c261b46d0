"""BitNet b1.58 as 1bitLLM published it: norms before o_proj and down_proj, silu, tied output; float latent weights."""

from __future__ import annotations

from gguf import MODEL_ARCH, MODEL_TENSOR

from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward,
    feed_forward_norm,
    layers,
    norm,
    output,
    require_heads_of_hidden_size,
    require_tied_output,
)


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number),
        norm(number, "self_attn.inner_attn_ln", MODEL_TENSOR.ATTN_SUB_NORM, config.query_size),
        feed_forward_norm(config, number),
        *feed_forward(config, number),
        norm(number, "mlp.ffn_layernorm", MODEL_TENSOR.FFN_SUB_NORM, config.intermediate_size),
    ]


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.BITNET,
    classes={"BitnetForCausalLM": {"tie_word_embeddings": True}},
    tensors=tensors,
    requires=(require_heads_of_hidden_size, require_tied_output),
    honours_scales=True,
)
