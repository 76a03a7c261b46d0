"""SmolLM3: Llama whose every fourth layer has no rotation."""

from __future__ import annotations

from gguf import MODEL_ARCH

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import Architecture, TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.decoder import (
    attention,
    attention_norm,
    embedding,
    feed_forward,
    feed_forward_norm,
    layers,
    output,
    pair_neighbours,
    require_no_attention_bias,
)

UNROTATED_EVERY = 4  # n_no_rope_layer_step of llama.cpp's smollm3 graph, which no key changes


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number, row_order=pair_neighbours),
        feed_forward_norm(config, number),
        *feed_forward(config, number),
    ]


def require_the_graph_s_rotations(config: DecoderConfig) -> None:
    """Raise UnsupportedError unless all layers but every fourth are rotated."""
    computed = [int((number + 1) % UNROTATED_EVERY != 0) for number in range(config.n_layers)]
    every = config.raw.integer("no_rope_layer_interval", UNROTATED_EVERY)
    listed = config.raw.get("no_rope_layers")
    if listed is None:
        key, found = "no_rope_layer_interval", [int((number + 1) % every != 0) for number in range(config.n_layers)]
    else:
        key, found = "no_rope_layers", listed[: config.n_layers] if isinstance(listed, list) else listed
    if found != computed:
        raise UnsupportedError(
            f"config.json: {key} doesn't leave every {UNROTATED_EVERY}th layer without rotation and rotate the others, "
            "which is what llama.cpp's smollm3 graph computes"
        )


def require_no_feed_forward_bias(config: DecoderConfig) -> None:
    """Raise UnsupportedError where the feed-forward part has biases."""
    if config.flag("mlp_bias"):
        raise UnsupportedError("config.json: mlp_bias is true, but llama.cpp's smollm3 graph adds no such bias")


SMOLLM3 = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_theta": 2000000.0,
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.SMOLLM3,
    classes={"SmolLM3ForCausalLM": SMOLLM3},
    tensors=tensors,
    requires=(require_the_graph_s_rotations, require_no_attention_bias, require_no_feed_forward_bias),
)
