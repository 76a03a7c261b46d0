"""The GGUF keys that llama.cpp reads a decoder's sizes from."""

from __future__ import annotations

from gguf import Keys

from tritgguf.converter.gguf_io.metadata import Metadata, float32, uint32
from tritgguf.converter.model.config import Ability, DecoderConfig
from tritgguf.converter.model.rope import trained_length


def hyperparameters(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys that every decoder has, under the prefix `arch`; those of the rotation are in rope.py.

    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes them.
    """
    keys: Metadata = {
        Keys.LLM.BLOCK_COUNT.format(arch=arch): uint32(config.n_layers),
        Keys.LLM.CONTEXT_LENGTH.format(arch=arch): uint32(context_length(config)),
        Keys.LLM.EMBEDDING_LENGTH.format(arch=arch): uint32(config.hidden_size),
        Keys.LLM.FEED_FORWARD_LENGTH.format(arch=arch): uint32(config.intermediate_size),
        Keys.LLM.VOCAB_SIZE.format(arch=arch): uint32(config.vocab_size),
        Keys.Attention.HEAD_COUNT.format(arch=arch): uint32(config.n_heads),
        Keys.Attention.HEAD_COUNT_KV.format(arch=arch): uint32(config.n_kv_heads),
        Keys.Attention.KEY_LENGTH.format(arch=arch): uint32(config.head_dim),
        Keys.Attention.VALUE_LENGTH.format(arch=arch): uint32(config.head_dim),
        Keys.Attention.LAYERNORM_RMS_EPS.format(arch=arch): float32(config.rms_norm_eps),
    }
    if config.sliding_window is not None:
        keys[Keys.Attention.SLIDING_WINDOW.format(arch=arch)] = uint32(config.sliding_window)
    return keys


def context_length(config: DecoderConfig) -> int:
    """Return how many tokens the graph computes correctly: within the window, sliding attention is full attention."""
    length = trained_length(config)
    if config.sliding_window is None or Ability.SLIDING_LAYERS in config.abilities:
        return length
    return min(length, config.sliding_window)
