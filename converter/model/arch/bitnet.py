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


def tensors(
    config: DecoderConfig, attention_sub_norm: str = "inner_attn_ln", feed_forward_sub_norm: str = "ffn_layernorm"
) -> list[TensorSpec]:
    """Return the tensors of the file, in order; checkpoints differ in what they call the norms before o and down."""

    def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
        return [
            attention_norm(config, number),
            *attention(config, number),
            norm(number, f"self_attn.{attention_sub_norm}", MODEL_TENSOR.ATTN_SUB_NORM, config.query_size),
            feed_forward_norm(config, number),
            *feed_forward(config, number),
            norm(number, f"mlp.{feed_forward_sub_norm}", MODEL_TENSOR.FFN_SUB_NORM, config.intermediate_size),
        ]

    return [embedding(config), *layers(config, layer), *output(config)]


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.BITNET,
    classes={"BitnetForCausalLM": {"tie_word_embeddings": True}},
    tensors=tensors,
    requires=(require_heads_of_hidden_size, require_tied_output),
    honours_scales=True,
)
