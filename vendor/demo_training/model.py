"""The model: a Llama decoder whose linear layers are ternary while it learns (BitNet b1.58, arXiv:2402.17764).

A forward pass rounds each weight matrix to {-1, 0, 1} times its mean magnitude and each token's activations to 8 bits;
a backward pass goes through both as if they weren't there (the straight-through estimator). With `ternary` off the same
model computes with its float weights: that is what the cost of ternary is measured against. Names of parameters are
Hugging Face's, so that a state_dict is a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_SCALE = 1e-5

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}


def weight_scale(weight: Tensor) -> Tensor:
    """What a trit of this matrix is worth: its mean magnitude (absmean)."""
    return weight.abs().mean().clamp(min=SMALLEST_SCALE)


def ternary_codes(weight: Tensor) -> Tensor:
    """The weight's codes, -1, 0 and 1, ties to even."""
    return (weight / weight_scale(weight)).round().clamp(-1, 1)


class Norm(nn.Module):
    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_columns))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


class Linear(nn.Module):
    def __init__(self, n_rows: int, n_columns: int, ternary: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, n_columns).normal_(std=CONFIG["initializer_range"]))
        self.ternary = ternary

    def forward(self, x: Tensor) -> Tensor:
        """`x` has been through `rounded` in a ternary model."""
        weight = self.weight
        if self.ternary:
            weight = weight + (ternary_codes(weight) * weight_scale(weight) - weight).detach()
        return functional.linear(x, weight.to(x.dtype))


def rounded(x: Tensor) -> Tensor:
    """Each token's activations on the 8-bit grid of its largest one, with a straight-through gradient."""
    step = x.detach().abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_SCALE) / 127
    return x + ((x / step).round() * step - x).detach()


class Attention(nn.Module):
    def __init__(self, ternary: bool) -> None:
        super().__init__()
        hidden, self.n_heads, self.head_dim = CONFIG["hidden_size"], CONFIG["num_attention_heads"], CONFIG["head_dim"]
        kv_rows = CONFIG["num_key_value_heads"] * self.head_dim
        self.ternary = ternary
        self.q_proj = Linear(self.n_heads * self.head_dim, hidden, ternary)
        self.k_proj = Linear(kv_rows, hidden, ternary)
        self.v_proj = Linear(kv_rows, hidden, ternary)
        self.o_proj = Linear(hidden, self.n_heads * self.head_dim, ternary)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = rounded(x) if self.ternary else x
        x = x.to(torch.bfloat16) if self.training else x
        q, k, v = (
            projection(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(rounded(mixed) if self.ternary else mixed)


class Mlp(nn.Module):
    def __init__(self, ternary: bool) -> None:
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.ternary = ternary
        self.gate_proj = Linear(inner, hidden, ternary)
        self.up_proj = Linear(inner, hidden, ternary)
        self.down_proj = Linear(hidden, inner, ternary)

    def forward(self, x: Tensor) -> Tensor:
        x = rounded(x) if self.ternary else x
        x = x.to(torch.bfloat16) if self.training else x
        inner = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(rounded(inner) if self.ternary else inner)


class Layer(nn.Module):
    def __init__(self, ternary: bool) -> None:
        super().__init__()
        self.input_layernorm = Norm(CONFIG["hidden_size"])
        self.self_attn = Attention(ternary)
        self.post_attention_layernorm = Norm(CONFIG["hidden_size"])
        self.mlp = Mlp(ternary)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids (batch, length) to hidden states (batch, length, hidden_size); `logits` ends the way."""

    def __init__(self, ternary: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=CONFIG["initializer_range"])
        self.layers = nn.ModuleList(Layer(ternary) for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = Norm(CONFIG["hidden_size"])
        angles = torch.outer(
            torch.arange(CONFIG["max_position_embeddings"]),
            CONFIG["rope_theta"] ** -(torch.arange(0, CONFIG["head_dim"], 2) / CONFIG["head_dim"]),
        ).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def losses(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """The negative log-likelihood, in nats, of each wanted id (batch, length); -100 isn't counted."""
        hidden = self(ids)
        hidden = hidden.to(torch.bfloat16) if self.training else hidden
        logits = functional.linear(hidden, self.embed_tokens.weight.to(hidden.dtype)).float()
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (batch, heads, length, head_dim), halves paired as Hugging Face does."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
