"""The shapes of a decoder layer's tensors in each class of transformers, by their names in the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tests.checkpoint_recipes import Recipe

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"

# The names of the norms of queries and keys.
QUERY_KEY_NORMS = ("q_norm.weight", "k_norm.weight", "query_layernorm.weight", "key_layernorm.weight")
# The module of a layer's experts, and what it calls gate, up and down.
EXPERTS = {
    "Qwen3MoeForCausalLM": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "Qwen3NextForCausalLM": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "MapleForCausalLM": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "MixtralForCausalLM": ("block_sparse_moe", "w1", "w3", "w2"),
}
# Classes whose norms multiply by 1 + weight.
NORMS_PLUS_ONE = frozenset({"Gemma3ForCausalLM", "Qwen3_5ForCausalLM", "Qwen3NextForCausalLM"})


def layer_shapes(recipe: Recipe, number: int = 0) -> Shapes:
    """Return the shapes of the tensors of one layer of the recipe's class."""
    if recipe.architecture == "Qwen3_5ForCausalLM":
        return _qwen35(recipe, number)
    if recipe.architecture == "Qwen3NextForCausalLM":
        return _qwen3_next(recipe, number)
    return _LAYERS.get(recipe.architecture, _llama)(recipe)


def has_query_key_norms(recipe: Recipe) -> bool:
    """Say whether the class has norms of queries and keys."""
    return any(name.endswith(QUERY_KEY_NORMS) for name in layer_shapes(recipe))


def _linears(recipe: Recipe) -> Shapes:
    hidden, ffn, size = recipe.hidden, recipe.ffn, recipe.size_per_head
    q_rows, kv_rows = recipe.heads * size, recipe.kv_heads * size
    shapes: Shapes = {}
    for name, shape in {
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.o_proj": (hidden, q_rows),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }.items():
        shapes[f"{name}.weight"] = shape
        if _has_bias(recipe, name):
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _has_bias(recipe: Recipe, linear: str) -> bool:
    if recipe.architecture == "Qwen2ForCausalLM":
        return linear.endswith(("q_proj", "k_proj", "v_proj"))
    return recipe.mlp_bias if linear.startswith("mlp.") else recipe.attention_bias


def _norms(recipe: Recipe, *names: str) -> Shapes:
    return {f"{name}.weight": (recipe.hidden,) for name in names}


def _head_norms(recipe: Recipe, *names: str) -> Shapes:
    return {f"self_attn.{name}.weight": (recipe.size_per_head,) for name in names}


def _llama(recipe: Recipe) -> Shapes:
    return {**_linears(recipe), **_norms(recipe, "input_layernorm", "post_attention_layernorm")}


def _qwen3(recipe: Recipe) -> Shapes:
    return {**_llama(recipe), **_head_norms(recipe, "q_norm", "k_norm")}


def _hunyuan(recipe: Recipe) -> Shapes:
    return {**_llama(recipe), **_head_norms(recipe, "query_layernorm", "key_layernorm")}


def _gemma3(recipe: Recipe) -> Shapes:
    return {**_qwen3(recipe), **_norms(recipe, "pre_feedforward_layernorm", "post_feedforward_layernorm")}


def _olmo2(recipe: Recipe) -> Shapes:
    size = recipe.size_per_head
    return {
        **_linears(recipe),
        **_norms(recipe, "post_attention_layernorm", "post_feedforward_layernorm"),
        "self_attn.q_norm.weight": (recipe.heads * size,),
        "self_attn.k_norm.weight": (recipe.kv_heads * size,),
    }


def _phi3(recipe: Recipe) -> Shapes:
    queries, keys = recipe.heads * recipe.size_per_head, recipe.kv_heads * recipe.size_per_head
    return {
        "self_attn.qkv_proj.weight": (queries + 2 * keys, recipe.hidden),
        "self_attn.o_proj.weight": (recipe.hidden, queries),
        "mlp.gate_up_proj.weight": (2 * recipe.ffn, recipe.hidden),
        "mlp.down_proj.weight": (recipe.hidden, recipe.ffn),
        **_norms(recipe, "input_layernorm", "post_attention_layernorm"),
    }


def _qwen35(recipe: Recipe, number: int) -> Shapes:
    values, keys, heads, hidden = *_net_sizes(recipe), recipe.extra["linear_num_value_heads"], recipe.hidden
    inputs = {
        "in_proj_qkv.weight": (2 * keys + values, hidden),
        "in_proj_z.weight": (values, hidden),
        "in_proj_b.weight": (heads, hidden),
        "in_proj_a.weight": (heads, hidden),
    }
    return _delta_net(recipe, number, inputs)


def _qwen3_next(recipe: Recipe, number: int) -> Shapes:
    values, keys, hidden, size = *_net_sizes(recipe), recipe.hidden, recipe.extra["shared_expert_intermediate_size"]
    inputs = {
        "in_proj_qkvz.weight": (2 * keys + 2 * values, hidden),
        "in_proj_ba.weight": (2 * recipe.extra["linear_num_value_heads"], hidden),
    }
    shared = {
        "shared_expert.gate_proj.weight": (size, hidden),
        "shared_expert.up_proj.weight": (size, hidden),
        "shared_expert.down_proj.weight": (hidden, size),
        "shared_expert_gate.weight": (1, hidden),
    }
    return {
        **_without_feed_forward(_delta_net(recipe, number, inputs)),
        **_experts(recipe),
        **{f"mlp.{name}": shape for name, shape in shared.items()},
    }


def _net_sizes(recipe: Recipe) -> tuple[int, int]:
    """Return the sizes of all value heads and of all key heads of a linear attention."""
    get = recipe.extra.__getitem__
    values = get("linear_num_value_heads") * get("linear_value_head_dim")
    return values, get("linear_num_key_heads") * get("linear_key_head_dim")


def _delta_net(recipe: Recipe, number: int, inputs: Shapes) -> Shapes:
    """Return a dense layer's shapes with full, gated attention, or with linear attention of these projections."""
    hidden, get = recipe.hidden, recipe.extra.__getitem__
    shapes = {**_llama(recipe), **_head_norms(recipe, "q_norm", "k_norm")}
    shapes["self_attn.q_proj.weight"] = (2 * recipe.heads * recipe.size_per_head, hidden)
    types = recipe.extra.get("layer_types")
    if types[number] == "full_attention" if types else (number + 1) % get("full_attention_interval") == 0:
        return shapes
    (values, keys), heads = _net_sizes(recipe), get("linear_num_value_heads")
    linear = {
        **inputs,
        "out_proj.weight": (hidden, values),
        "conv1d.weight": (2 * keys + values, 1, get("linear_conv_kernel_dim")),
        "A_log": (heads,),
        "dt_bias": (heads,),
        "norm.weight": (get("linear_value_head_dim"),),
    }
    others = {name: shape for name, shape in shapes.items() if not name.startswith("self_attn.")}
    return {**others, **{f"linear_attn.{name}": shape for name, shape in linear.items()}}


def _experts(recipe: Recipe) -> Shapes:
    """Return the shapes of a router and of each expert's matrices."""
    hidden, ffn = recipe.hidden, recipe.ffn
    module, *names = EXPERTS[recipe.architecture]
    shapes = dict(zip(names, ((ffn, hidden), (ffn, hidden), (hidden, ffn)), strict=True))
    return {f"{module}.gate.weight": (recipe.experts, hidden)} | {
        f"{module}.experts.{expert}.{name}.weight": shape
        for expert in range(recipe.experts)
        for name, shape in shapes.items()
    }


def _qwen3_moe(recipe: Recipe) -> Shapes:
    return {**_without_feed_forward(_qwen3(recipe)), **_experts(recipe)}


def _mixtral(recipe: Recipe) -> Shapes:
    return {**_without_feed_forward(_llama(recipe)), **_experts(recipe)}


def _without_feed_forward(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if "mlp." not in name}


_LAYERS: Mapping[str, Callable[[Recipe], Shapes]] = {
    "Qwen3ForCausalLM": _qwen3,
    "HunYuanDenseV1ForCausalLM": _hunyuan,
    "Gemma3ForCausalLM": _gemma3,
    "Olmo2ForCausalLM": _olmo2,
    "Olmo3ForCausalLM": _olmo2,
    "Phi3ForCausalLM": _phi3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "MapleForCausalLM": _qwen3_moe,
    "MixtralForCausalLM": _mixtral,
}
