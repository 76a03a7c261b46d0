"""BitNet b1.58 2B-4T: as bitnet, but with squared ReLU, which llama.cpp's bitnet graph doesn't compute.

The file calls itself bitnet-b1.58, so that every program without the right activation refuses it by name. tritgguf's
runtime loads it as bitnet and replaces the activation.
"""

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
        norm(number, "self_attn.attn_sub_norm", MODEL_TENSOR.ATTN_SUB_NORM, config.query_size),
        feed_forward_norm(config, number),
        *feed_forward(config, number),
        norm(number, "mlp.ffn_sub_norm", MODEL_TENSOR.FFN_SUB_NORM, config.intermediate_size),
    ]


BITNET_CONFIG = {
    "num_key_value_heads": 5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "relu2",
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.BITNET,
    classes={"BitNetForCausalLM": BITNET_CONFIG},
    tensors=tensors,
    requires=(require_heads_of_hidden_size, require_tied_output),
    activations=("relu2",),
    honours_scales=True,
    own_name="bitnet-b1.58",
)
