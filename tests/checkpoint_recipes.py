"""The recipes of checkpoints.py: one row per variant of an architecture that conversion must get right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests import tiny_tokenizers


@dataclass(frozen=True)
class Recipe:
    """One checkpoint: shapes, weights, and how config.json and the files spell them."""

    architecture: str
    weights: str  # "float", or "ternary-" + "tensor" | "shard" | "row" | "block": which weights share one scale
    dtype: str = "BF16"  # as safetensors spells it
    hidden: int = 256
    ffn: int = 512
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None  # None: hidden / heads, and no such key in config.json
    vocab: int = 320
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    transformers: int = 4  # the major version whose spelling config.json follows
    rope_theta: float | None = 10000.0  # None: no such key, as in Llama 1
    rope_scaling: Mapping[str, Any] | None = None
    max_positions: int = 2048
    rms_norm_eps: float = 1e-05
    shards: int = 1
    tokenizer: str = "llama3"
    experts: int = 0  # in each layer; with `ffn` inner values each
    experts_used: int = 2  # for each token
    inv_freq: bool = False  # Llama 1 files carry the rotary frequencies as tensors
    extra: Mapping[str, Any] = field(default_factory=dict)  # further config.json keys
    n_tokens: int = 96  # length of the recorded sequence
    methods: tuple[str, ...] = ()  # ternary methods that have recorded logits of their own

    @property
    def size_per_head(self) -> int:
        return self.head_dim or self.hidden // self.heads


_LLAMA, _MISTRAL, _QWEN2, _QWEN3 = (f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
_HUNYUAN, _GEMMA3, _SMOLLM3, _PHI3, _GRANITE, _OLMO2, _OLMO3 = (
    f"{name}ForCausalLM" for name in ("HunYuanDenseV1", "Gemma3", "SmolLM3", "Phi3", "Granite", "Olmo2", "Olmo3")
)
_QWEN35 = "Qwen3_5ForCausalLM"
_QWEN3_MOE, _QWEN3_NEXT, _MIXTRAL = "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM", "MixtralForCausalLM"
_MODEL_TYPES = {_QWEN3_MOE: "qwen3_moe"}
_BOTH = ("absmean", "mse")
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# As HunYuan's files have it: of these, transformers reads alpha.
_ALPHA = {"type": "dynamic", "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0}
_GRANITE_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.09375,
    "residual_multiplier": 0.75,
    "logits_scaling": 4.0,
}
_PAD = {"pad_token_id": 0}  # transformers' own default lies beyond these small vocabularies
_GEMMA = {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64}
_DELTA_NET = {
    "model_type": "qwen3_5_text",
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}

_QWEN3_NEXT_NET = {**_DELTA_NET, "model_type": "qwen3_next", "shared_expert_intermediate_size": 512}


def _longrope(n_factors: int, original: int) -> dict[str, Any]:
    """Return factors that grow with the wavelength: short ones below 2, long ones up to 5."""
    return {
        "type": "longrope",
        "short_factor": [1 + index / n_factors for index in range(n_factors)],
        "long_factor": [1 + 4 * index / n_factors for index in range(n_factors)],
        "original_max_position_embeddings": original,
    }


_QWEN_WINDOW_OFF = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 1}

RECIPES: Mapping[str, Recipe] = {
    # Llama 1 has neither num_key_value_heads nor rope_theta in config.json.
    "llama1": Recipe(_LLAMA, "ternary-tensor", "F16", kv_heads=4, rope_theta=None, inv_freq=True),
    # An epsilon of 0.05 is large enough to show when it is lost.
    "llama-gqa": Recipe(_LLAMA, "float", rms_norm_eps=0.05, methods=_BOTH),
    "llama-tied": Recipe(_LLAMA, "ternary-row", tied=True, transformers=5, tokenizer="smollm", layers=3),
    "llama-biases": Recipe(_LLAMA, "float", "F32", attention_bias=True, mlp_bias=True, vocab=384, shards=2),
    "llama-head-dim": Recipe(_LLAMA, "ternary-tensor", head_dim=128, ffn=768, rope_theta=1000042.0),
    "llama-shards-of-rows": Recipe(_LLAMA, "ternary-shard", "F16", layers=4),
    "llama-llama3": Recipe(
        _LLAMA, "ternary-block", rope_theta=500000.0, rope_scaling=_LLAMA3_SCALING, n_tokens=192, ffn=768
    ),
    "llama-llama3-tied": Recipe(
        _LLAMA,
        "float",
        tied=True,
        transformers=5,
        rope_theta=500000.0,
        rope_scaling={**_LLAMA3_SCALING, "factor": 32.0},
        n_tokens=192,
        shards=2,
    ),
    "llama-linear": Recipe(
        _LLAMA, "float", "F16", kv_heads=4, rope_scaling={"type": "linear", "factor": 4.0}, n_tokens=160
    ),
    "llama-yarn": Recipe(_LLAMA, "float", transformers=5, rope_scaling=_YARN, max_positions=256, n_tokens=192),
    "llama-yarn-betas": Recipe(
        _LLAMA,
        "float",
        transformers=5,
        rope_scaling={**_YARN, "beta_fast": 8.0, "beta_slow": 0.5},
        max_positions=256,
        n_tokens=192,
    ),
    "llama-yarn-attention-factor": Recipe(
        _LLAMA, "ternary-tensor", rope_scaling={**_YARN, "attention_factor": 1.4}, max_positions=256, n_tokens=160
    ),
    # 192 is no multiple of 256: only the FFN's down projections fit TQ1_0 and TQ2_0.
    "llama-hidden-192": Recipe(_LLAMA, "ternary-tensor", hidden=192, heads=3, kv_heads=1),
    "mistral-window": Recipe(_MISTRAL, "float", extra={"sliding_window": 4096}, rms_norm_eps=0.05, methods=_BOTH),
    "mistral-no-window": Recipe(
        _MISTRAL,
        "ternary-row",
        head_dim=64,
        transformers=5,
        rope_theta=1000000.0,
        extra={"sliding_window": None},
        shards=2,
    ),
    "qwen2": Recipe(
        _QWEN2,
        "float",
        shards=3,
        vocab=512,
        tokenizer="qwen2",
        rope_theta=1000000.0,
        rms_norm_eps=0.05,
        extra=_QWEN_WINDOW_OFF,
        methods=_BOTH,
    ),
    "qwen2-tied": Recipe(
        _QWEN2, "ternary-tensor", hidden=512, heads=8, tied=True, transformers=5, tokenizer="qwen2", ffn=768
    ),
    "qwen2-yarn": Recipe(
        _QWEN2,
        "ternary-block",
        tokenizer="qwen2",
        rope_theta=1000000.0,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        max_positions=64,
        extra=_QWEN_WINDOW_OFF,
        n_tokens=192,
    ),
    "qwen3": Recipe(
        _QWEN3,
        "float",
        head_dim=128,
        tokenizer="qwen2",
        rope_theta=1000000.0,
        vocab=384,
        rms_norm_eps=0.05,
        methods=_BOTH,
    ),
    "qwen3-tied": Recipe(
        _QWEN3,
        "ternary-block",
        head_dim=128,
        tied=True,
        transformers=5,
        tokenizer="qwen2",
        rope_theta=1000000.0,
        shards=2,
    ),
    "qwen3-biases": Recipe(_QWEN3, "ternary-row", "F16", head_dim=64, attention_bias=True, tokenizer="qwen2"),
    "qwen3-yarn": Recipe(
        _QWEN3,
        "float",
        head_dim=128,
        transformers=5,
        tokenizer="qwen2",
        rope_theta=1000000.0,
        rope_scaling=_YARN,
        max_positions=256,
        n_tokens=192,
    ),
    "hunyuan-alpha": Recipe(
        _HUNYUAN,
        "float",
        head_dim=64,
        tied=True,
        rope_scaling=_ALPHA,
        rms_norm_eps=0.05,
        extra={"model_type": "hunyuan_v1_dense"},
        methods=_BOTH,
    ),
    "hunyuan-head-dim": Recipe(
        _HUNYUAN,
        "ternary-row",
        head_dim=128,
        transformers=5,
        rope_theta=1000000.0,
        extra={"model_type": "hunyuan_v1_dense"},
    ),
    # Six layers, so that one is global; the window is shorter than the text.
    "gemma3": Recipe(
        _GEMMA3,
        "float",
        layers=6,
        ffn=256,
        head_dim=64,
        tied=True,
        rope_theta=1000000.0,
        rms_norm_eps=0.05,
        extra={**_GEMMA, "rope_local_base_freq": 5000.0, "sliding_window": 32, "sliding_window_pattern": 6},
        n_tokens=128,
        methods=_BOTH,
    ),
    "gemma3-linear": Recipe(
        _GEMMA3,
        "ternary-block",
        layers=3,
        head_dim=64,
        tied=True,
        transformers=5,
        rope_scaling={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        extra={
            **_GEMMA,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 12.0,
        },
        n_tokens=160,
    ),
    # Five layers, so that the fourth has no rotation.
    "smollm3": Recipe(
        _SMOLLM3,
        "float",
        layers=5,
        ffn=256,
        tied=True,
        rope_theta=5000000.0,
        rms_norm_eps=0.05,
        extra=_PAD,
        methods=_BOTH,
    ),
    "smollm3-yarn": Recipe(
        _SMOLLM3,
        "ternary-block",
        layers=4,
        ffn=256,
        transformers=5,
        rope_scaling=_YARN,
        max_positions=256,
        n_tokens=192,
        extra={**_PAD, "no_rope_layers": [1, 1, 1, 0]},
    ),
    "phi3": Recipe(
        _PHI3, "float", kv_heads=4, rms_norm_eps=0.05, extra={**_PAD, "sliding_window": 2047}, methods=_BOTH
    ),
    "phi3-longrope-long": Recipe(
        _PHI3,
        "ternary-row",
        tied=True,
        rope_scaling=_longrope(24, 64),
        max_positions=512,
        n_tokens=192,
        extra={
            **_PAD,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "sliding_window": None,
        },
    ),
    "phi3-longrope-short": Recipe(
        _PHI3,
        "float",
        rope_scaling=_longrope(32, 256),
        max_positions=2048,
        n_tokens=192,
        extra={**_PAD, "original_max_position_embeddings": 256},
    ),
    "granite": Recipe(_GRANITE, "float", tied=True, rms_norm_eps=0.05, extra=_GRANITE_MULTIPLIERS, methods=_BOTH),
    "granite-biases": Recipe(
        _GRANITE,
        "ternary-tensor",
        attention_bias=True,
        mlp_bias=True,
        transformers=5,
        rope_scaling=_LLAMA3_SCALING,
        n_tokens=160,
        extra=_GRANITE_MULTIPLIERS,
    ),
    "olmo2": Recipe(_OLMO2, "float", kv_heads=4, rms_norm_eps=0.05, rope_theta=500000.0, methods=_BOTH),
    "olmo2-gqa": Recipe(_OLMO2, "ternary-block", transformers=5, rope_scaling=_YARN, max_positions=256, n_tokens=192),
    # Four layers, so that one's attention is full; two value heads per key head.
    "qwen35": Recipe(
        _QWEN35,
        "float",
        layers=4,
        ffn=256,
        head_dim=64,
        tokenizer="qwen2",
        transformers=5,
        rope_scaling={"mrope_section": [3, 3, 2], "mrope_interleaved": True, "partial_rotary_factor": 0.25},
        rope_theta=10000000.0,
        rms_norm_eps=1e-06,
        extra=_DELTA_NET,
        methods=_BOTH,
    ),
    "qwen35-one-to-one": Recipe(
        _QWEN35,
        "ternary-row",
        layers=4,
        ffn=256,
        head_dim=64,
        tokenizer="qwen2",
        transformers=5,
        rope_scaling={"partial_rotary_factor": 0.5},
        rms_norm_eps=1e-06,
        extra={**_DELTA_NET, "linear_num_key_heads": 4, "linear_num_value_heads": 4, "full_attention_interval": 2},
    ),
    # Four layers, so that one is global; only that one's rotation is scaled.
    "olmo3": Recipe(
        _OLMO3,
        "ternary-row",
        layers=4,
        ffn=256,
        rope_theta=500000.0,
        rope_scaling=_YARN,
        max_positions=256,
        n_tokens=192,
        extra={"sliding_window": 40},
    ),
    "olmo3-types": Recipe(
        _OLMO3,
        "float",
        kv_heads=4,
        transformers=5,
        rope_scaling={
            "full_attention": {**_YARN, "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
        max_positions=256,
        n_tokens=192,
        extra={"sliding_window": 40, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen3moe": Recipe(
        _QWEN3_MOE, "float", head_dim=128, tokenizer="qwen2", ffn=256, experts=8, experts_used=3, rms_norm_eps=0.05
    ),
    "qwen3moe-ternary": Recipe(
        _QWEN3_MOE, "ternary-row", head_dim=64, transformers=5, tokenizer="qwen2", ffn=256, experts=6, shards=3
    ),
    # As qwen35, with experts in every layer.
    "qwen3next": Recipe(
        _QWEN3_NEXT,
        "float",
        layers=4,
        ffn=256,
        head_dim=64,
        tokenizer="qwen2",
        rope_theta=10000000.0,
        rms_norm_eps=1e-06,
        experts=4,
        extra={**_QWEN3_NEXT_NET, "partial_rotary_factor": 0.25},
    ),
    # One value head per key head, and layer_types, which count more than full_attention_interval.
    "qwen3next-ternary": Recipe(
        _QWEN3_NEXT,
        "ternary-row",
        layers=3,
        ffn=256,
        head_dim=64,
        transformers=5,
        tokenizer="qwen2",
        rope_scaling={**_YARN, "partial_rotary_factor": 0.5},
        max_positions=256,
        rms_norm_eps=1e-06,
        shards=2,
        experts=4,
        extra={
            **_QWEN3_NEXT_NET,
            "linear_num_key_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        n_tokens=192,
    ),
    "mixtral": Recipe(_MIXTRAL, "float", ffn=256, experts=4, rope_theta=1000000.0, rms_norm_eps=0.05),
    "mixtral-ternary": Recipe(_MIXTRAL, "ternary-tensor", "F16", ffn=512, experts=4, transformers=5, experts_used=1),
}


def config(recipe: Recipe) -> dict[str, Any]:
    """Return config.json as the recipe's major version of transformers writes it."""
    keys: dict[str, Any] = {
        "architectures": [recipe.architecture],
        "model_type": _MODEL_TYPES.get(recipe.architecture, recipe.architecture.removesuffix("ForCausalLM").lower()),
        "hidden_act": "silu",
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.ffn,
        "max_position_embeddings": recipe.max_positions,
        "num_attention_heads": recipe.heads,
        "num_hidden_layers": recipe.layers,
        "rms_norm_eps": recipe.rms_norm_eps,
        "tie_word_embeddings": recipe.tied,
        "vocab_size": recipe.vocab,
        **tiny_tokenizers.special_ids(recipe.tokenizer),
        **recipe.extra,
    }
    if recipe.rope_theta is not None:
        keys["num_key_value_heads"] = recipe.kv_heads
    if recipe.head_dim is not None:
        keys["head_dim"] = recipe.head_dim
    if recipe.architecture in (_LLAMA, _QWEN3, _GRANITE):
        keys["attention_bias"] = recipe.attention_bias
    if recipe.experts:
        is_local = recipe.architecture == _MIXTRAL or (recipe.transformers == 5 and recipe.architecture != _QWEN3_NEXT)
        count = "num_local_experts" if is_local else "num_experts"
        keys |= {count: recipe.experts, "num_experts_per_tok": recipe.experts_used}
    if recipe.architecture in (_QWEN3_MOE, _QWEN3_NEXT):  # layers without experts would have twice as many values
        keys |= {"moe_intermediate_size": recipe.ffn, "intermediate_size": 2 * recipe.ffn, "norm_topk_prob": True}
    if recipe.architecture in (_LLAMA, _GRANITE):
        keys["mlp_bias"] = recipe.mlp_bias
    dtype = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[recipe.dtype]
    if recipe.transformers == 4:
        theta = {} if recipe.rope_theta is None else {"rope_theta": recipe.rope_theta}
        return {**keys, **theta, "rope_scaling": recipe.rope_scaling, "torch_dtype": dtype}
    if recipe.rope_scaling and "full_attention" in recipe.rope_scaling:
        return {**keys, "rope_parameters": recipe.rope_scaling, "dtype": dtype}
    rope = {"rope_type": "default", **(recipe.rope_scaling or {}), "rope_theta": recipe.rope_theta}
    return {**keys, "rope_parameters": rope, "dtype": dtype}
