"""HunYuan dense v1: norms on q and k, after the rotation. Its graph uses NEOX rope, so rows keep their order."""

from __future__ import annotations

from gguf import MODEL_ARCH, MODEL_TENSOR

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import PARAMETERS, SCALING, DecoderConfig, head_size, read_rope
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward,
    feed_forward_norm,
    layers,
    norm,
    output,
    require_no_attention_bias,
)


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number),
        norm(number, "self_attn.query_layernorm", MODEL_TENSOR.ATTN_Q_NORM, config.head_dim),
        norm(number, "self_attn.key_layernorm", MODEL_TENSOR.ATTN_K_NORM, config.head_dim),
        feed_forward_norm(config, number),
        *feed_forward(config, number),
    ]


def with_stretched_base(keys: Settings) -> ConfigJson:
    """Return the keys with "dynamic" scaling by a fixed `alpha` as what it is: a larger base, whatever the length.

    The rule is that of transformers' `HunYuanDenseV1RotaryEmbedding.compute_ntk_alpha_rope_parameters`.
    """
    rope = read_rope(keys)
    if rope.kind != "dynamic" or not rope.options.has("alpha"):
        return keys
    if (size := head_size(keys)) <= 2:
        raise UnsupportedError(f"config.json: head_dim {size} is too small for rope scaling by alpha")
    theta = rope.theta * rope.options.number("alpha") ** (size / (size - 2))
    return {**keys, SCALING: None, PARAMETERS: {"rope_type": "default", "rope_theta": theta}}


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.HUNYUAN_DENSE,
    classes={"HunYuanDenseV1ForCausalLM": {"rms_norm_eps": 1e-05}},
    tensors=tensors,
    respell=with_stretched_base,
    model_type="hunyuan_v1_dense",
    requires=(require_no_attention_bias,),
)
