"""OLMo 2 and 3: norms after each part, and over all queries or all keys of a token at once.

OLMo 3 has sliding layers, whose rotation isn't scaled. The graph uses NEOX rope, so rows keep their order.
"""

from __future__ import annotations

from gguf import MODEL_ARCH, MODEL_TENSOR

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import Ability, DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    embedding,
    feed_forward,
    layers,
    norm,
    output,
    require_heads_of_hidden_size,
    require_no_attention_bias,
    require_untied_output,
)
from tritgguf.converter.model.sliding import (
    LOCAL_THETA,
    PERIOD,
    layer_types_setting,
    pattern_metadata,
    require_window,
    with_one_rotation,
)


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        *attention(config, number),
        norm(number, "self_attn.q_norm", MODEL_TENSOR.ATTN_Q_NORM, config.query_size),
        norm(number, "self_attn.k_norm", MODEL_TENSOR.ATTN_K_NORM, config.key_size),
        norm(number, "post_attention_layernorm", MODEL_TENSOR.ATTN_POST_NORM, config.hidden_size),
        *feed_forward(config, number),
        norm(number, "post_feedforward_layernorm", MODEL_TENSOR.FFN_POST_NORM, config.hidden_size),
    ]


def with_own_rotation(keys: Settings) -> ConfigJson:
    """Return OLMo 3's keys with the full layers' rotation as the model's, OLMo 2's as they are."""
    return with_one_rotation(keys) if keys.has(PERIOD) else keys


def require_one_theta(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the sliding layers' rope_theta isn't that of the others."""
    if (local := config.raw.number(LOCAL_THETA, config.rope.theta)) != config.rope.theta:
        raise UnsupportedError(
            f"config.json: the sliding layers' rope_theta ({LOCAL_THETA}) is {local:g}, but llama.cpp's olmo2 graph "
            f"rotates them by {config.rope.theta:g} as the others"
        )


def settings(keys: Settings) -> ConfigJson:
    """Return OLMo 3's class and layer types where a GGUF file's keys have a window: the way back of `extra_keys`."""
    if not keys.has("attention.sliding_window"):
        return {}
    return {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", **layer_types_setting(keys)}


OLMO3 = {"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "sliding_window": 4096, PERIOD: 4}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.OLMO2,
    classes={"Olmo2ForCausalLM": {"rms_norm_eps": 1e-05}, "Olmo3ForCausalLM": OLMO3},
    tensors=tensors,
    extra_keys=pattern_metadata,
    requires=(
        require_window,
        require_one_theta,
        require_heads_of_hidden_size,
        require_untied_output,
        require_no_attention_bias,
    ),
    respell=with_own_rotation,
    settings=settings,
    abilities=frozenset({Ability.SLIDING_LAYERS}),
)
