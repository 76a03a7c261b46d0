"""A decoder in float64, from the published descriptions of Llama, Qwen3, BitNet b1.58, MiniCPM, mixtures and Maple.

It is for the models whose class transformers doesn't have. tests/converter/test_numpy_decoder.py compares it with
transformers where both compute the same, then the runtime with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def relu2(x: Array) -> Array:
    return np.maximum(x, 0) ** 2


ACTIVATIONS = {"silu": silu, "relu2": relu2}


def logits(
    weights: Mapping[str, NDArray[np.float32]],
    config: Mapping[str, Any],
    token_ids: Sequence[int],
    sub_norms: tuple[str, str] | None = None,
) -> Array:
    """Return the logits of every token, (n_tokens, n_vocab).

    `weights` are what the linear layers compute with, by Hugging Face names; `config` is config.json in the spelling of
    transformers 4; `sub_norms` are the names of BitNet's norms before o_proj and down_proj. Where `config` has
    `rounded_activations`, linear layers see their inputs in 8 bits per token, as transformers' BitLinear does.
    """
    tensors = {name: values.astype(np.float64) for name, values in weights.items()}
    residual_scale = config.get("scale_depth", 0) / math.sqrt(config["num_hidden_layers"]) or 1.0
    embeddings = tensors.get("model.embed_tokens.weight", tensors.get("model.word_embeddings.weight"))
    assert embeddings is not None
    states = embeddings[np.array(token_ids)] * config.get("scale_emb", 1)
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        layer = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        norms = [layer[f"{name}.weight"] for name in sub_norms] if sub_norms else [None, None]
        normed = rms_norm(states, layer["input_layernorm.weight"], config)
        states = states + residual_scale * attention(normed, layer, in_layer(config, number), norms[0])
        normed = rms_norm(states, layer["post_attention_layernorm.weight"], config)
        states = states + residual_scale * ffn(normed, layer, config, norms[1])
    states = rms_norm(states, tensors["model.norm.weight"], config)
    if "dim_model_base" in config:
        states = states / (config["hidden_size"] / config["dim_model_base"])
    output: Array = states @ tensors.get("lm_head.weight", embeddings).T
    return output


def in_layer(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the config of one layer: Maple's global layers have neither a window nor a rotation, others no window."""
    slides = "nope_on_global_attention" in config and config["layer_types"][number] == "sliding_attention"
    rotates = slides or not config.get("nope_on_global_attention")
    return {**config, "window": config["sliding_window"] if slides else None, "rotates": rotates}


def rms_norm(x: Array, weight: Array | None, config: Mapping[str, Any]) -> Array:
    if weight is None:
        return x
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"]) * weight


def linear(x: Array, weight: Array, config: Mapping[str, Any]) -> Array:
    """One linear layer; `x` is (n_tokens, n_columns)."""
    if config.get("rounded_activations"):
        steps = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5) / 127
        x = np.clip(np.round(x / steps), -128, 127) * steps
    output: Array = x @ weight.T
    return output


def attention(x: Array, layer: Mapping[str, Array], config: Mapping[str, Any], sub_norm: Array | None) -> Array:
    """Causal attention; `x` is (n_tokens, hidden)."""
    n_tokens, n_heads, n_kv = len(x), config["num_attention_heads"], config["num_key_value_heads"]
    q, k, v = (
        linear(x, layer[f"self_attn.{part}_proj.weight"], config).reshape(n_tokens, count, -1).swapaxes(0, 1)
        for part, count in (("q", n_heads), ("k", n_kv), ("v", n_kv))
    )
    q, k = (rms_norm(x, layer.get(f"self_attn.{part}_norm.weight"), config) for part, x in (("q", q), ("k", k)))
    if config["rotates"]:
        n_rotated = int(q.shape[-1] * config.get("partial_rotary_factor", 1))
        q, k = (
            np.concatenate([rotated(x[..., :n_rotated], config["rope_theta"]), x[..., n_rotated:]], axis=-1)
            for x in (q, k)
        )
    k, v = np.repeat(k, n_heads // n_kv, axis=0), np.repeat(v, n_heads // n_kv, axis=0)
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    distances = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    scores = np.where((distances >= 0) & (distances < (config["window"] or n_tokens)), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = (shares @ v).swapaxes(0, 1).reshape(n_tokens, -1)
    return linear(rms_norm(mixed, sub_norm, config), layer["self_attn.o_proj.weight"], config)


def rotated(x: Array, theta: float) -> Array:
    """Rotate value i of each head with value i + half a head; `x` is (n_heads, n_tokens, head)."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


MIXTURES = {
    "mlp.gate.weight": ("gate_proj", "up_proj", "down_proj"),
    "block_sparse_moe.gate.weight": ("w1", "w3", "w2"),
}


def mixture(x: Array, layer: Mapping[str, Array], config: Mapping[str, Any], router: str) -> Array:
    """The outputs of the experts with the highest scores, weighted by these scores over their sum.

    An expert's gate is at most `clamp`, its up at most as large, where the config has one.
    """
    scores = np.exp(x @ layer[router].T)
    n_used = config["num_experts_per_tok"]
    scores[scores < np.sort(scores, axis=-1)[:, -n_used, None]] = 0
    scores /= scores.sum(axis=-1, keepdims=True)
    output, clamp, module = np.zeros_like(x), config.get("clamp", np.inf), router.removesuffix(".gate.weight")
    for expert, score in enumerate(scores.T):
        gate, up, down = (layer[f"{module}.experts.{expert}.{name}.weight"] for name in MIXTURES[router])
        inner = silu(np.minimum(x @ gate.T, clamp)) * np.clip(x @ up.T, -clamp, clamp)
        output += score[:, None] * (inner @ down.T)
    return output


def ffn(x: Array, layer: Mapping[str, Array], config: Mapping[str, Any], sub_norm: Array | None) -> Array:
    if router := next((name for name in MIXTURES if name in layer), None):
        return mixture(x, layer, config, router)
    activation = ACTIVATIONS[config["hidden_act"]]
    gate, up = (linear(x, layer[f"mlp.{part}_proj.weight"], config) for part in ("gate", "up"))
    return linear(rms_norm(activation(gate) * up, sub_norm, config), layer["mlp.down_proj.weight"], config)
