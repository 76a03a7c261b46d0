"""Gemma 3 (text): norms on q and k and around each part, GELU, sliding layers with a rotation of their own.

Its norms multiply by 1 + weight, so the file's weights are one larger. NEOX rope: rows keep their order.
"""

from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH, MODEL_TENSOR, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import Ability, DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward,
    layers,
    norm,
    output,
    query_key_norms,
    require_no_attention_bias,
)
from tritgguf.converter.model.sliding import (
    LOCAL_THETA,
    PERIOD,
    layer_types_setting,
    pattern_metadata,
    require_window,
    with_one_rotation,
)

LAYERS_OF_27B = 62  # by this number llama.cpp knows the one size whose attention isn't scaled by its head_dim
CAP = "final_logit_softcapping"


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    specs = [embedding(config), *layers(config, layer), *output(config)]
    return [replace(spec, plus=1.0) if spec.role == "norm" else spec for spec in specs]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    hidden = config.hidden_size
    return [
        attention_norm(config, number),
        *attention(config, number),
        *query_key_norms(config, number),
        norm(number, "post_attention_layernorm", MODEL_TENSOR.ATTN_POST_NORM, hidden),
        norm(number, "pre_feedforward_layernorm", MODEL_TENSOR.FFN_NORM, hidden),
        *feed_forward(config, number),
        norm(number, "post_feedforward_layernorm", MODEL_TENSOR.FFN_POST_NORM, hidden),
    ]


def windows_and_caps(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys of the sliding layers, and the bound of the logits if there is one."""
    keys = pattern_metadata(config, arch)
    if config.sliding_window is not None:
        keys[Keys.Rope.FREQ_BASE_SWA.format(arch=arch)] = float32(config.raw.number(LOCAL_THETA))
    if config.raw.has(CAP):
        cap = config.raw.number(CAP)
        keys[Keys.LLM.FINAL_LOGIT_SOFTCAPPING.format(arch=arch)] = float32(cap)
    return keys


def settings(keys: Settings) -> ConfigJson:
    """Return config.json's settings from a GGUF file's keys: the way back of `windows_and_caps`."""
    found = {
        **layer_types_setting(keys),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": attention_divisor(
            keys.integer("block_count"),
            keys.integer("embedding_length") // keys.integer("attention.head_count"),
            keys.integer("attention.key_length", 256),
        ),
        LOCAL_THETA: keys.number("rope.freq_base_swa", 10000.0),
    }
    cap = {CAP: keys.number(CAP)} if keys.has(CAP) else {}
    return found | cap


def attention_divisor(n_layers: int, hidden_per_head: int, head_dim: int) -> int:
    """Return the square of what llama.cpp's graph divides attention scores by."""
    return hidden_per_head if n_layers == LAYERS_OF_27B else head_dim


def require_the_graph_s_attention(config: DecoderConfig) -> None:
    """Raise UnsupportedError for a scale or a direction of the attention that the graph doesn't have."""
    heads = attention_divisor(config.n_layers, config.hidden_size // config.n_heads, config.head_dim)
    if (scalar := config.raw.number("query_pre_attn_scalar", 256)) != heads:
        raise UnsupportedError(
            f"config.json: query_pre_attn_scalar is {scalar:g}, but llama.cpp's gemma3 graph computes with {heads} "
            f"where num_hidden_layers is {config.n_layers}"
        )
    if config.flag("use_bidirectional_attention"):
        raise UnsupportedError("config.json: use_bidirectional_attention is true; a generating model looks back only")
    if config.raw.has("attn_logit_softcapping"):
        raise UnsupportedError("config.json: attn_logit_softcapping is set, but llama.cpp's gemma3 graph has none")


def require_unscaled_windows(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the full layers' scaling would reach the sliding ones in the graph."""
    if config.sliding_window is not None and config.rope.kind == "yarn":
        raise UnsupportedError(
            "config.json: rope scaling yarn would also change the sliding layers in llama.cpp's gemma3 graph; expected "
            "default or linear"
        )


GEMMA3 = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    LOCAL_THETA: 10000.0,
    "sliding_window": 4096,
    PERIOD: 6,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.GEMMA3,
    classes={"Gemma3ForCausalLM": GEMMA3},
    tensors=tensors,
    extra_keys=windows_and_caps,
    requires=(require_window, require_the_graph_s_attention, require_unscaled_windows, require_no_attention_bias),
    activations=("gelu_pytorch_tanh",),
    respell=with_one_rotation,
    settings=settings,
    model_type="gemma3_text",
    abilities=frozenset({Ability.SLIDING_LAYERS}),
)
