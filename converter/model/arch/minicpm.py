"""MiniCPM (BitCPM): Llama with scaled embeddings, residuals and logits."""

from __future__ import annotations

import math

from gguf import MODEL_ARCH, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32
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
    rope_divisors,
)
from tritgguf.converter.model.rope import trained_length


def tensors(config: DecoderConfig) -> list[TensorSpec]:
    """Return the tensors of the file, in order."""
    return [embedding(config), *rope_divisors(config), *layers(config, layer), *output(config)]


def layer(config: DecoderConfig, number: int) -> list[TensorSpec]:
    """Return the tensors of one layer."""
    return [
        attention_norm(config, number),
        *attention(config, number, row_order=pair_neighbours),
        feed_forward_norm(config, number),
        *feed_forward(config, number),
    ]


def scales(config: DecoderConfig, arch: str) -> Metadata:
    """Return what embeddings, residuals and logits are multiplied by, as `MiniCPMModel` in the model's folder does."""
    keys, depth = config.raw, config.raw.number("scale_depth") / math.sqrt(config.n_layers)
    return {
        Keys.LLM.EMBEDDING_SCALE.format(arch=arch): float32(keys.number("scale_emb")),
        Keys.LLM.RESIDUAL_SCALE.format(arch=arch): float32(depth),
        Keys.LLM.LOGIT_SCALE.format(arch=arch): float32(config.hidden_size / keys.number("dim_model_base")),
    }


def settings(keys: Settings) -> ConfigJson:
    """Return what `scales` made the keys of; logits are scaled by a whole number."""
    logits = keys.number("logit_scale")
    return {
        "scale_emb": keys.number("embedding_scale"),
        "scale_depth": keys.number("residual_scale") * math.sqrt(keys.integer("block_count")),
        "dim_model_base": keys.integer("embedding_length") / logits,
    }


def require_dense_attention(config: DecoderConfig) -> None:
    """Raise UnsupportedError where long texts attend sparsely."""
    if config.raw.object("sparse_config"):
        raise UnsupportedError(
            "config.json: sparse_config makes long texts attend sparsely, but llama.cpp's minicpm graph attends to "
            "everything; set it to null to convert the model with dense attention"
        )


def require_derived_factor(config: DecoderConfig) -> None:
    """Raise UnsupportedError where LongRoPE has a factor that transformers would use, but not the model's own code."""
    options = config.rope.options
    if config.rope.kind != "longrope" or not options.has("factor"):
        return
    derived = config.max_positions / trained_length(config)
    if not math.isclose(factor := options.number("factor"), derived):
        raise UnsupportedError(
            f"{options.name('factor')} is {factor:g}, but MiniCPM's own code scales by max_position_embeddings / "
            f"original_max_position_embeddings = {derived:g}: remove the key to convert the model as that code runs it"
        )


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.MINICPM,
    classes={"MiniCPMForCausalLM": {"tie_word_embeddings": True}},
    tensors=tensors,
    extra_keys=scales,
    settings=settings,
    requires=(require_dense_attention, require_derived_factor),
)
