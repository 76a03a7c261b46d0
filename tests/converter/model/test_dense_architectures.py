"""HunYuan, Gemma 3, Qwen3.5, SmolLM3, Phi-3, Granite, OLMo: keys and tensors, and what their graphs can't compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tritgguf.runtime as rt
from tests import checkpoints
from tests.checkpoint_recipes import RECIPES, config
from tritgguf.converter import convert
from tritgguf.converter.errors import TritggufError, UnsupportedError
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.architecture import architecture_for
from tritgguf.converter.model.config import DecoderConfig

# Larger than any tolerance of the logits' tests.
SHOWS = 5e-2


def decoder(keys: dict[str, Any]) -> DecoderConfig:
    return architecture_for(keys).read_config(keys)


def metadata(keys: dict[str, Any]) -> dict[str, Any]:
    architecture = architecture_for(keys)
    return {key: value.data for key, value in architecture.metadata(architecture.read_config(keys)).items()}


def converted(name: str, folder: Path, **changes: Any) -> GgufFile:
    """Convert a recipe's checkpoint, its config.json changed."""
    model = checkpoints.build(name, folder / "model")
    keys = {**json.loads((model / "config.json").read_text(encoding="utf-8")), **changes}
    (model / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    return read_gguf(convert(model, folder / "out.gguf", "f16", check=False).out)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_hunyuan_s_alpha_is_a_larger_base() -> None:
    """10000 · 1000^(64 / 62), as transformers' compute_ntk_alpha_rope_parameters gives."""
    keys = metadata(config(RECIPES["hunyuan-alpha"]))
    assert keys["hunyuan-dense.rope.freq_base"] == pytest.approx(12496094.17, rel=1e-6)
    assert not [key for key in keys if ".rope.scaling" in key]


@pytest.mark.parametrize("alpha", [0, -1, "1000", float("nan"), 1e300, True])
def test_a_wrong_alpha_is_named(alpha: object) -> None:
    keys = {**config(RECIPES["hunyuan-alpha"]), "rope_scaling": {"type": "dynamic", "alpha": alpha}}
    with pytest.raises(TritggufError, match=r"rope_scaling\.alpha must be"):
        decoder(keys)


def test_dynamic_scaling_without_alpha_follows_the_length_and_is_refused() -> None:
    keys = {**config(RECIPES["hunyuan-alpha"]), "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    with pytest.raises(UnsupportedError, match="'dynamic' isn't known"):
        metadata(keys)


@pytest.mark.parametrize(
    ("name", "window", "slides"),
    [
        ("gemma3", 32, [True] * 5 + [False]),
        ("gemma3-linear", 48, [True, False, True]),
        ("olmo3", 40, [True] * 3 + [False]),
        ("olmo3-types", 40, [False, True]),
    ],
)
def test_graphs_that_slide_get_the_pattern_and_the_whole_context(name: str, window: int, slides: list[bool]) -> None:
    keys = metadata(config(RECIPES[name]))
    prefix = keys["general.architecture"]
    assert keys[f"{prefix}.attention.sliding_window"] == window
    assert keys[f"{prefix}.attention.sliding_window_pattern"] == slides
    assert keys[f"{prefix}.context_length"] == RECIPES[name].max_positions


def test_graphs_that_do_not_slide_end_at_the_window() -> None:
    keys = metadata({**config(RECIPES["phi3"]), "sliding_window": 512})
    assert (keys["phi3.context_length"], RECIPES["phi3"].max_positions) == (512, 2048)


def test_gemma_s_two_bases() -> None:
    keys = metadata(config(RECIPES["gemma3"]))
    assert (keys["gemma3.rope.freq_base"], keys["gemma3.rope.freq_base_swa"]) == (1000000.0, 5000.0)
    keys = metadata(config(RECIPES["gemma3-linear"]))
    assert (keys["gemma3.rope.freq_base"], keys["gemma3.rope.freq_base_swa"]) == (1000000.0, 10000.0)
    assert (keys["gemma3.rope.scaling.factor"], keys["gemma3.final_logit_softcapping"]) == (8.0, 12.0)


def test_a_gemma_without_sliding_layers_has_no_window() -> None:
    keys = metadata({**config(RECIPES["gemma3"]), "sliding_window_pattern": 1})
    assert not [key for key in keys if "sliding" in key or "swa" in key]


# Values of Gemma3TextConfig(), Qwen3_5TextConfig(), Qwen3NextConfig(), SmolLM3Config(), Phi3Config(), GraniteConfig(),
# Olmo2Config(), Olmo3Config() and HunYuanDenseV1Config() of transformers 5.23.0.
@pytest.mark.parametrize(
    ("name", "eps", "theta", "tied", "kv_heads", "window", "positions"),
    [
        ("gemma3", 1e-6, 1000000.0, True, 4, 4096, 131072),
        ("qwen35", 1e-6, 10000.0, False, 4, None, 32768),
        ("qwen3next", 1e-6, 10000.0, False, 2, None, 32768),
        ("smollm3", 1e-6, 2000000.0, True, 4, None, 32768),
        ("phi3", 1e-5, 10000.0, False, 4, None, 4096),
        ("granite", 1e-6, 10000.0, False, 4, None, 2048),
        ("olmo2", 1e-5, 10000.0, False, 4, None, 2048),
        ("olmo3", 1e-5, 500000.0, False, 4, 4096, 2048),
        ("hunyuan-alpha", 1e-5, 10000.0, False, 4, None, 2048),
    ],
)
def test_absent_keys_are_those_of_the_class(
    name: str, eps: float, theta: float, tied: bool, kv_heads: int, window: int | None, positions: int
) -> None:
    sizes = ("architectures", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    given = config(RECIPES[name])
    read = decoder({**{key: given[key] for key in sizes}, "vocab_size": 320, "query_pre_attn_scalar": 256})
    assert (read.rms_norm_eps, read.rope.theta, read.tied, read.n_kv_heads) == (eps, theta, tied, kv_heads)
    assert (read.sliding_window, read.max_positions) == (window, positions)
    assert read.head_dim == (256 if name in ("gemma3", "qwen35", "qwen3next") else 64)
    assert read.rotated_size == (64 if name in ("qwen35", "qwen3next") else read.head_dim)


def test_granite_s_absent_multipliers_are_one() -> None:
    given = config(RECIPES["granite"])
    keys = metadata({key: value for key, value in given.items() if not key.endswith(("multiplier", "scaling"))})
    scales = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale")
    assert [keys[f"granite.{scale}"] for scale in scales] == [1.0] * 4


@pytest.mark.parametrize("older", ["su", "yarn"])
def test_older_names_of_phi_s_longrope(older: str) -> None:
    given = config(RECIPES["phi3-longrope-short"])
    expected = metadata(given)
    assert metadata({**given, "rope_scaling": {**given["rope_scaling"], "type": older}}) == expected
    assert expected["phi3.rope.scaling.original_context_length"] == 256
    assert expected["phi3.rope.scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(8) / np.log(256)))
    assert expected["phi3.context_length"] == 2048


# --- tensors ------------------------------------------------------------------------------------------------------


def test_gemma_s_norms_are_one_larger_in_the_file(tmp_path: Path) -> None:
    file, weights = converted("gemma3", tmp_path), checkpoints.weights("gemma3")
    norms = {name: tensor for name, tensor in file.tensors.items() if "norm" in name}
    assert len(norms) == 6 * 6 + 1
    assert {tensor.dtype for tensor in norms.values()} == {"F32"}
    for source, name in (
        ("model.norm", "output_norm"),
        ("model.layers.3.self_attn.k_norm", "blk.3.attn_k_norm"),
        ("model.layers.3.input_layernorm", "blk.3.attn_norm"),
        ("model.layers.3.post_attention_layernorm", "blk.3.post_attention_norm"),
        ("model.layers.3.pre_feedforward_layernorm", "blk.3.ffn_norm"),
        ("model.layers.3.post_feedforward_layernorm", "blk.3.post_ffw_norm"),
    ):
        found = norms[f"{name}.weight"].read(slice(0, 1))[0]
        np.testing.assert_array_equal(found, weights[f"{source}.weight"] + np.float32(1))


def test_phi_s_factors_are_tensors(tmp_path: Path) -> None:
    file = converted("phi3-longrope-long", tmp_path)
    scaling = RECIPES["phi3-longrope-long"].rope_scaling
    assert scaling is not None
    for which in ("long", "short"):
        found = file.tensors[f"rope_factors_{which}.weight"].read(slice(0, 1))[0]
        np.testing.assert_array_equal(found, np.array(scaling[f"{which}_factor"], np.float32))
    assert file.value("phi3.rope.dimension_count") == 48


@pytest.mark.parametrize("name", ["qwen35", "qwen3next"])
def test_layers_that_guess_further_tokens_are_left_out_with_a_note(name: str, tmp_path: Path) -> None:
    folder = checkpoints.build(name, tmp_path)
    tensors = {f"{key}.weight": ("F32", (1,), b"\0" * 4) for key in ("mtp.norm", "mtp.fc")}
    stored = {key: ("BF16", t.shape, checkpoints._encode(t, "BF16")) for key, t in checkpoints.weights(name).items()}
    checkpoints._write_safetensors(folder / "model.safetensors", {**stored, **tensors})
    result = convert(folder, tmp_path / "out.gguf", "f16", check=False)
    assert "2 tensors mtp.* are left out: the model computes without them" in result.plan.notes


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma3", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar is 168, .* computes with 64"),
        ("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 63}, "query_pre_attn_scalar is 63, .* with 64"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 6}, "layer_types has 'chunked_attention'"),
        ("gemma3", {"layer_types": ["full_attention"] * 5}, "layer_types must be a list of 6 texts"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling yarn would also change"),
        ("gemma3-linear", {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, "no_rope_layers doesn't leave every 4th layer"),
        ("smollm3", {"no_rope_layer_interval": 2}, "no_rope_layer_interval doesn't leave every 4th layer"),
        ("smollm3", {"mlp_bias": True}, "mlp_bias is true"),
        ("smollm3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but the graph rotates whole heads"),
        ("hunyuan-alpha", {"attention_bias": True}, "attention_bias is true"),
        ("phi3", {"partial_rotary_factor": 0.52}, "partial_rotary_factor is 0.52, 33 of a head's 64 values"),
        (
            "smollm3",
            {"auto_map": {"AutoModelForCausalLM": "modeling.SmolLM3ForCausalLM"}},
            r"the folder's own modeling",
        ),
        ("phi3", {"head_dim": 32}, "head_dim 32 isn't hidden_size"),
        ("qwen35", {"linear_value_head_dim": 32}, "linear_value_head_dim is 32, .* linear_key_head_dim, 64"),
        ("qwen35", {"linear_num_value_heads": 5}, "linear_num_value_heads must be a multiple of .* 2, found 5"),
        ("qwen35", {"layer_types": ["mamba"] * 4}, "layer_types has 'mamba'"),
        ("qwen35", {"layer_types": ["full_attention"]}, "layer_types must be a list of 4 texts"),
        ("qwen35", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, .* transformers adds 1e-06"),
        ("qwen35", {"rope_parameters": {"mrope_section": [3, 3]}}, "mrope_section must be a list of 3 integers"),
        ("qwen35", {"rope_parameters": {"mrope_section": [99, 3, 3]}}, "mrope_section must be a list .* 64 or less"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings is true, .* output layer of its own"),
        ("olmo3", {"rope_local_base_freq": 10000.0}, r"\(rope_local_base_freq\) is 10000, .* by 500000"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 16 else "",
)
def test_what_the_graph_lacks_is_refused_by_name(name: str, changes: dict[str, Any], words: str) -> None:
    metadata(config(RECIPES[name]))
    with pytest.raises(TritggufError, match=words):
        metadata({**config(RECIPES[name]), **changes})


def test_known_code_in_the_folder_is_no_obstacle() -> None:
    """As of Phi-3 and MiniCPM, whose classes were published as code first."""
    decoder({**config(RECIPES["phi3"]), "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}})


def test_an_unknown_class_is_told_the_way_round() -> None:
    with pytest.raises(
        UnsupportedError, match=r"Zamba2ForCausalLM isn't known; .* F16 GGUF file with .*then give that"
    ):
        architecture_for({"architectures": ["Zamba2ForCausalLM"]})


# --- what would show ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hunyuan-alpha", {"rope_scaling": None}),
        ("gemma3", {"sliding_window": 2048}),
        ("gemma3", {"sliding_window_pattern": 7}),
        ("gemma3", {"rope_local_base_freq": 1000000.0}),
        ("gemma3", {"rope_theta": 5000.0}),
        ("gemma3-linear", {"final_logit_softcapping": None}),
        ("phi3-longrope-long", {"original_max_position_embeddings": 512}),
        ("qwen35", {"rope_parameters": {"rope_theta": 10000000.0, "partial_rotary_factor": 1.0}}),
        ("qwen3next", {"partial_rotary_factor": 1.0}),
        ("qwen3next", {"rope_theta": 10000.0}),
        ("qwen3next", {"num_experts_per_tok": 1}),
        ("qwen3next-ternary", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
        ("granite", {"embedding_multiplier": 1.0}),
        ("granite", {"attention_multiplier": 0.125}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"logits_scaling": 1.0}),
        ("olmo3", {"sliding_window": 256}),
        ("olmo3", {"rope_scaling": None}),
        ("olmo3-types", {"layer_types": ["sliding_attention", "full_attention"]}),
    ],
    ids=str,
)
def test_a_lost_setting_would_show(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """The runtime's logits of a file without the setting differ by more than any tolerance."""
    ids = checkpoints.token_ids(name)
    right, wrong = (converted(name, tmp_path / str(number), **c) for number, c in enumerate(({}, changes)))
    logits = []
    for file in (right, wrong):
        with rt.open(file.path, n_ctx=len(ids)) as session:
            logits.append(session.logits(ids))
    assert np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0]) > SHOWS
