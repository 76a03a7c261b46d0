"""Wrong values in a model's JSON files: one line that names file, key and value, whatever key and value they are."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import packed_checkpoints
from tests.checkpoint_recipes import RECIPES, config
from tests.packed_checkpoints import PACKED
from tritgguf.converter.checkpoint.config_json import read_config_json
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.packings import uniform_trits
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.errors import TritggufError
from tritgguf.converter.gguf_io.header import header_bytes
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.model.architecture import architecture_for
from tritgguf.converter.model.card_metadata import card_metadata
from tritgguf.converter.model.description import Parameters

NAN, INFINITY = float("nan"), float("inf")
HUGE = 10**400
DEEP: list[Any] = []
for _ in range(80):
    DEEP = [DEEP]
NO_NUMBERS = (
    "1",
    "",
    "false",
    NAN,
    INFINITY,
    -INFINITY,
    0,
    -1,
    -0.5,
    HUGE,
    1e300,
    1e-300,
    [1],
    [],
    DEEP,
    {"a": 1},
    True,
)
NO_SIZES = (*NO_NUMBERS, 1.5, 10**12)
NO_FLAGS = ("false", "true", "", 0, 1, NAN, HUGE, [], [False], {"a": False}, DEEP)
NO_TEXTS = (0, 1, NAN, HUGE, True, [], ["yarn"], {"a": "b"}, DEEP)
NO_NAMES = ("a", 0, NAN, HUGE, True, [1], [["a"]], {"a": "b"}, DEEP)
FACTORS = [1.0 + index / 64 for index in range(32)]

SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)
EVERYWHERE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(SIZES, NO_SIZES),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), NO_NUMBERS),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window"), NO_FLAGS),
    "layer_types": NO_NAMES,
    "architectures": (*NO_NAMES, [], ["a\nb"], ["a" * 5000]),
    "rope_scaling": ("yarn", 0, NAN, HUGE, True, [1], DEEP),
    "hidden_act": (0, NAN, HUGE, True, [], ["silu"], "a" * 5000, "a\nb"),
}
LENGTH = ("1", NAN, INFINITY, 0, 1, -1, HUGE, 1e300, [64], True, DEEP)
ROPES: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "linear": ({"factor": 2.0}, {"factor": NO_NUMBERS, "rope_type": NO_TEXTS}),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        {
            **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), NO_NUMBERS),
            "original_max_position_embeddings": LENGTH,
        },
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 0.8},
        {
            **dict.fromkeys(("factor", "beta_fast", "beta_slow", "attention_factor"), NO_NUMBERS),
            **dict.fromkeys(("mscale", "mscale_all_dim"), tuple(bad for bad in NO_NUMBERS if bad not in (0, 1e-300))),
            "original_max_position_embeddings": LENGTH,
            "truncate": NO_FLAGS,
        },
    ),
    "longrope": (
        {"factor": 8.0, "original_max_position_embeddings": 64, "short_factor": FACTORS},
        {
            **dict.fromkeys(("factor", "attention_factor"), NO_NUMBERS),
            "original_max_position_embeddings": LENGTH,
            "short_factor": (*NO_NAMES, FACTORS[1:], [*FACTORS[1:], NAN], [*FACTORS[1:], 0], [*FACTORS[1:], "1"]),
        },
    ),
}
OF_ONE: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama-gqa": dict.fromkeys(("attention_bias", "mlp_bias"), NO_FLAGS),
    "mistral-window": {"sliding_window": NO_SIZES[:-1]},
    "qwen3": {"attention_bias": NO_FLAGS},
    "hunyuan-alpha": {"attention_bias": NO_FLAGS},
    "gemma3": {
        "hidden_activation": (0, NAN, True, [], "gelu", "a\nb"),
        "sliding_window": (*NO_SIZES[:-1], None),
        "sliding_window_pattern": NO_SIZES[:-1],
        **dict.fromkeys(("rope_local_base_freq", "query_pre_attn_scalar", "final_logit_softcapping"), NO_NUMBERS),
        "attn_logit_softcapping": (50.0, *NO_NUMBERS),
        **dict.fromkeys(("use_bidirectional_attention", "attention_bias"), NO_FLAGS),
        "rope_parameters": ("a", 1, [1], DEEP, {"rope_theta": 1.0}, {"full_attention": 1}, {"sliding_attention": [1]}),
    },
    "smollm3": {
        "no_rope_layers": ("a", 1, NAN, True, [], [1, 1, 1, 1, 1], [1, 1, 1], {"a": 1}, DEEP),
        "no_rope_layer_interval": (*NO_SIZES, 3),
        **dict.fromkeys(("attention_bias", "mlp_bias"), NO_FLAGS),
    },
    "phi3": {"sliding_window": NO_SIZES[:-1], "partial_rotary_factor": (*NO_NUMBERS, 0.01, 0.52, 1.5)},
    "granite": {
        **dict.fromkeys(
            ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), NO_NUMBERS
        ),
        **dict.fromkeys(("attention_bias", "mlp_bias"), NO_FLAGS),
    },
    "qwen35-one-to-one": {
        **dict.fromkeys(
            ("linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim"),
            NO_SIZES,
        ),
        "linear_num_value_heads": (*NO_SIZES, 6),
        "full_attention_interval": NO_SIZES[:-1],
        "attention_bias": (*NO_FLAGS, True),
        "rms_norm_eps": (1e-5,),
        "rope_parameters": ("a", 1, [1], DEEP),
    },
    "qwen3next": {
        **dict.fromkeys(
            (
                *("linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim"),
                *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"),
            ),
            NO_SIZES,
        ),
        "linear_num_value_heads": (*NO_SIZES, 5),
        "full_attention_interval": NO_SIZES[:-1],
        "norm_topk_prob": (*NO_FLAGS, False),
        "mlp_only_layers": ([0], 1, "a", NAN, True, {"a": 1}, DEEP),
        "decoder_sparse_step": (2, 0, -1, "1", NAN, 1.5, [1], DEEP),
        "attention_bias": (*NO_FLAGS, True),
        "rms_norm_eps": (1e-5,),
    },
    "olmo2": {"attention_bias": (*NO_FLAGS, True), "tie_word_embeddings": (*NO_FLAGS, True)},
    "olmo3": {
        "sliding_window": (*NO_SIZES[:-1], None),
        "sliding_window_pattern": NO_SIZES[:-1],
        "rope_local_base_freq": (*NO_NUMBERS, 10000.0),
    },
    "bitcpm": {
        **dict.fromkeys(("scale_emb", "scale_depth", "dim_model_base"), NO_NUMBERS),
        "sparse_config": ("a", 1, NAN, HUGE, True, [1], DEEP),
    },
}
BASES = {name: config(RECIPES[name]) for name in ("llama-gqa", "mistral-window", "qwen2", "qwen3")}
BASES |= {name: config(RECIPES[name]) for name in ("hunyuan-alpha", "gemma3", "smollm3", "phi3", "granite")}
BASES |= {name: config(RECIPES[name]) for name in ("olmo2", "olmo3", "qwen35-one-to-one", "qwen3next")}
# What isn't read: Gemma has hidden_activation, and where layers slide is told by layer_types.
UNREAD = {"gemma3": ("hidden_act", "use_sliding_window"), "olmo3": ("use_sliding_window",)}
UNREAD["qwen3next"] = ("use_sliding_window",)
UNREAD["qwen35-one-to-one"] = (
    "use_sliding_window",
    "rope_theta",
    "partial_rotary_factor",
)  # these keys of rope_parameters come first
BASES |= {name: config(PACKED[name].base) for name in ("1bitllm", "2b4t", "bitcpm")}


def described(keys: dict[str, Any], folder: Path) -> Metadata:
    """Write config.json, and return the keys that a file of the model has."""
    (folder / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    raw = read_config_json(folder)
    architecture = architecture_for(raw)
    read = architecture.read_config(raw)
    assert architecture.tensors(read)
    metadata = architecture.metadata(read)
    header_bytes(metadata, [])
    return metadata


def assert_one_line(error: TritggufError, *words: str) -> None:
    line = str(error)
    assert line.isprintable(), line
    assert len(line) < 700, line  # the longest lists the classes that are known
    for word in words:
        assert word in line, line


def with_rope(base: dict[str, Any], kind: str) -> dict[str, Any]:
    return {**base, "rope_scaling": {"rope_type": kind, **ROPES[kind][0]}}


def wrong_values() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each base with each of its keys set to each wrong value."""
    for name, base in BASES.items():
        for key, values in {**EVERYWHERE, **OF_ONE.get(name, {})}.items():
            if key not in UNREAD.get(name, ()):
                yield from ((name, {**base, key: bad}, key.removesuffix("s")) for bad in values)
    for kind, (_, keys) in ROPES.items():
        scaled = with_rope(BASES["llama-gqa"], kind)
        assert scaled["rope_scaling"]
        for key, values in keys.items():
            for bad in values:
                yield kind, {**scaled, "rope_scaling": {**scaled["rope_scaling"], key: bad}}, key
                parameters = {"rope_theta": 10000.0, **scaled["rope_scaling"], key: bad}
                yield f"{kind}, 5", {**scaled, "rope_scaling": None, "rope_parameters": parameters}, key


@pytest.mark.parametrize("name", [*BASES, *ROPES, *(f"{kind}, 5" for kind in ROPES)])
def test_a_wrong_value_is_named(name: str, tmp_path: Path) -> None:
    described(BASES[name] if name in BASES else with_rope(BASES["llama-gqa"], name.split(",")[0]), tmp_path)
    for _, keys, key in (case for case in wrong_values() if case[0] == name):
        with pytest.raises(TritggufError) as refused:
            pytest.fail(f"{key}: {keys.get(key, keys)} is taken: {described(keys, tmp_path)}")
        whole = "rope_" if "nested more than" in str(refused.value) and name not in BASES else key
        assert_one_line(refused.value, "config.json", whole)


SOME_LINES = st.text(max_size=8) | st.sampled_from(
    ["silu", "yarn", "longrope", "llama3", "bitnet", "online", "a\nb\x1b[2J"]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.integers(0, 300) | SOME_LINES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SOME_LINES, inner, max_size=3),
    max_leaves=6,
) | st.sampled_from([*NO_SIZES, HUGE, -HUGE])
KEYS = sorted({*EVERYWHERE, *(key for keys in OF_ONE.values() for key in keys), "sliding_window", "rope_parameters"})
ROPE_KEYS = sorted(
    {key for _, keys in ROPES.values() for key in keys} | {"type", "rope_theta", "partial_rotary_factor"}
)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from(sorted(BASES)),
    kind=st.sampled_from(["", *ROPES]),
    changes=st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=2),
    rope_changes=st.dictionaries(st.sampled_from(ROPE_KEYS), JSON_VALUES, max_size=2),
)
def test_any_value_is_taken_or_refused_in_one_line(
    base: str,
    kind: str,
    changes: dict[str, Any],
    rope_changes: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    keys = copy.deepcopy(BASES[base])
    if kind:
        keys["rope_scaling"] = {**with_rope(keys, kind)["rope_scaling"], **rope_changes}
    folder = tmp_path_factory.getbasetemp()
    try:
        metadata = described({**keys, **changes}, folder)
    except TritggufError as error:
        assert_one_line(error, "config.json")
        return
    numbers = [value.data for value in metadata.values() if isinstance(value.data, float)]
    assert all(math.isfinite(number) for number in numbers), numbers


# --- quantization_config and generation_config.json ---------------------------------------------------------------

QUANTIZATION: dict[str, dict[str, tuple[Any, ...]]] = {
    "2b4t": {"linear_class": NO_TEXTS, "quant_method": NO_TEXTS, "use_rms_norm": NO_FLAGS},
    "llama-online": {
        "modules_to_not_convert": NO_NAMES,
        "quantization_mode": NO_TEXTS,
        "quant_method": NO_TEXTS,
        "use_rms_norm": NO_FLAGS,
    },
    "14b-newer": {"group_size": NO_SIZES, "packing": NO_TEXTS, "quant_method": NO_TEXTS, "use_rms_norm": NO_FLAGS},
}


@pytest.mark.parametrize("name", QUANTIZATION)
def test_a_wrong_value_in_quantization_config_is_named(name: str, tmp_path: Path) -> None:
    packed_checkpoints.build(name, tmp_path)
    keys, stored = read_config_json(tmp_path), read_tensors(tmp_path)
    linear = {key for key in stored if "_proj" in key}
    read_packing(keys, stored, linear)
    for key, values in QUANTIZATION[name].items():
        for bad in values:
            changed = {"quantization_config": {**keys["quantization_config"], key: bad}}
            with pytest.raises(TritggufError) as refused:
                pytest.fail(f"{key}: {bad!r:.80} is taken: {read_packing(changed, stored, linear)[0]}")
            assert_one_line(refused.value, "config.json", "quantization_config", key)
    for bad in ("bitnet", 0, 1, NAN, True, [], [{}], DEEP):
        with pytest.raises(TritggufError) as refused:
            read_packing({"quantization_config": bad}, stored, linear)
        assert_one_line(refused.value, "config.json", "quantization_config")


@pytest.mark.parametrize(("key", "values"), [("digits", (*NO_SIZES, 4)), ("group_size", (*NO_SIZES, 32))])
def test_a_wrong_value_for_uniform_trits_is_named(key: str, values: tuple[Any, ...]) -> None:
    right = {"quant_method": uniform_trits.METHOD, "digits": 2, "group_size": 16}
    assert uniform_trits.read({"quantization_config": right}, {}, ()) == {}
    for bad in values:
        with pytest.raises(TritggufError) as refused:
            pytest.fail(f"{bad!r} is taken: {uniform_trits.read({'quantization_config': {**right, key: bad}}, {}, ())}")
        assert_one_line(refused.value, "config.json", f"quantization_config.{key}")


SAMPLING = {
    "temperature": tuple(bad for bad in NO_NUMBERS if bad not in (0, 1e-300)),
    "top_p": (*(bad for bad in NO_NUMBERS if bad not in (0, 1e-300)), 1.5),
    "min_p": (*(bad for bad in NO_NUMBERS if bad not in (0, 1e-300)), 1.5),
    "repetition_penalty": NO_NUMBERS,
    "top_k": (*(bad for bad in NO_SIZES if bad not in (0, -1)), -2),
}


def sampling(folder: Path) -> list[Any]:
    keys, notes = card_metadata(folder, {}, Parameters(1000, 1000))
    assert notes == []
    return [value.data for key, value in keys.items() if key.startswith("general.sampling")]


@pytest.mark.parametrize("key", SAMPLING)
def test_a_wrong_value_in_generation_config_is_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    for bad in SAMPLING[key]:
        path.write_text(json.dumps({key: bad}), encoding="utf-8")
        with pytest.raises(TritggufError) as refused:
            pytest.fail(f"{bad!r} is taken: {sampling(tmp_path)}")
        assert_one_line(refused.value, path.name, key)


def test_generation_config_s_usual_values_are_taken(tmp_path: Path) -> None:
    usual = {"temperature": 0.6, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.1, "top_k": 20, "do_sample": "x"}
    (tmp_path / "generation_config.json").write_text(json.dumps({**usual, "eos_token_id": None}), encoding="utf-8")
    assert sampling(tmp_path) == [0.6, 0.95, 0.0, 1.1, 20]
    (tmp_path / "generation_config.json").write_text(json.dumps(dict.fromkeys(usual)), encoding="utf-8")
    assert sampling(tmp_path) == []
