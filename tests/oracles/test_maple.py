"""Maple in the real runtime against the decoder in numpy that follows the model's own code; transformers has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tritgguf.runtime as rt
from tests import maple_model, numpy_decoder
from tests.checkpoint_recipes import config
from tests.maple_model import CLAMP, RECIPE, TOKEN_IDS, TYPES, WINDOW, Floats
from tritgguf.converter import convert, form_named, plan, quantize
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.errors import SourceError, TritggufError, UnsupportedError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.verification.verification import verify

RELATIVE_ERROR, TERNARY_ERROR = 2e-3, 5e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maple_model.write(tmp_path_factory.mktemp("maple") / "model")


def reference(**changes: Any) -> NDArray[np.float64]:
    """Return what the model computes, with changes to its rules."""
    return numpy_decoder.logits(maple_model.weights(), {**config(RECIPE), "clamp": CLAMP, **changes}, TOKEN_IDS)


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def logits(file: Path) -> Floats:
    with rt.open(file, n_ctx=len(TOKEN_IDS)) as session:
        return session.logits(TOKEN_IDS)


@pytest.mark.parametrize("type_name", ["f16", "tq2_0", "tq1_0", "q2_0"])
def test_the_runtime_computes_what_the_model_does(type_name: str, folder: Path, tmp_path: Path) -> None:
    found, expected = logits(convert(folder, tmp_path / "out.gguf", type_name).out), reference()
    error = relative_error(found, expected)
    assert error <= (RELATIVE_ERROR if type_name == "f16" else TERNARY_ERROR), f"relative error {error:.2e}"
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95


@pytest.mark.parametrize(
    "changes",
    [
        {"clamp": np.inf},
        {"sliding_window": 96},
        {"sliding_window": WINDOW + 1},
        {"partial_rotary_factor": 1.0},
        {"rope_theta": 500000.0},
        {"layer_types": TYPES[::-1]},
        {"num_experts_per_tok": 2},
        {"rms_norm_eps": 0.05},
    ],
    ids=str,
)
def test_a_lost_rule_would_show(changes: dict[str, Any]) -> None:
    """Each changes the logits by more than any tolerance above."""
    assert relative_error(reference(**changes), reference()) > TERNARY_ERROR


def test_the_ternary_layers_are_stored_exactly(folder: Path, tmp_path: Path) -> None:
    conversion = convert(folder, tmp_path / "out.gguf", "tq2_0")
    for tensor in conversion.plan.tensors:
        if tensor.spec.role == "linear":
            assert (tensor.codec.name, tensor.exact) == ("tq2_0", True), tensor.spec.name
        elif tensor.spec.role == "router":
            assert (tensor.codec.name, tensor.exact) == ("f32", True)
    found = verify(folder, conversion.out)
    assert not found.problems
    exact = {check.name for check in found.tensors if check.verdict == "exact"}
    assert {tensor.spec.name for tensor in conversion.plan.tensors if tensor.spec.role == "linear"} <= exact


def test_the_keys_are_those_of_the_graph(folder: Path, tmp_path: Path) -> None:
    file = read_gguf(convert(folder, tmp_path / "out.gguf", "tq2_0").out)
    expected = {
        "block_count": 3,
        "context_length": 2048,  # not limited to the window, which the graph has
        "feed_forward_length": 640,
        "expert_count": 6,
        "expert_used_count": 3,
        "expert_feed_forward_length": 256,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [False, True, True],
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.dimension_count": 32,
        "swiglu_clamp_exp": [CLAMP] * 3,
    }
    assert file.architecture == "maple"
    assert {key: file.value(f"maple.{key}") for key in expected} == expected
    assert file.value("tokenizer.ggml.pre") == "qwen2"


def test_the_way_back_and_there_again_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    made = convert(folder, tmp_path / "made.gguf", "f16", check=False).out
    back = quantize(made, tmp_path / "model", form_named(None, dtype="f32")).out
    stored = read_tensors(back)
    assert stored.keys() == maple_model.weights().keys()
    again = read_gguf(convert(back, tmp_path / "again.gguf", "f16", check=False).out)
    expected = read_gguf(made)
    assert {name: tensor.data.tobytes() for name, tensor in again.tensors.items()} == {
        name: tensor.data.tobytes() for name, tensor in expected.tensors.items()
    }
    assert {key: value for key, value in again.metadata.items() if key.startswith("maple.")} == {
        key: value for key, value in expected.metadata.items() if key.startswith("maple.")
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is False, .* by their sum"),
        ({"nope_on_global_attention": False}, "nope_on_global_attention is false, "),
        ({"nope_on_global_attention": None}, "nope_on_global_attention is false, "),
        ({"num_shared_experts": 1}, "num_shared_experts is 1, .* no shared experts"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace is 1, .* every layer"),
        ({"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias is True"),
        ({"use_qk_norm": False}, "use_qk_norm is False"),
        ({"use_bias": True}, "use_bias is True"),
        ({"swiglu_limit": 5.0}, r"swiglu_limit is 5\.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types must be "),
        ({"layer_types": None}, "layer_types must be "),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types must be a list of 3"),
        ({"layer_types": ["sliding_attention"] * 2 + ["linear_attention"]}, "layer_types has 'linear_attention'"),
        ({"sliding_window": None}, "sliding_window must be "),
        ({"moe_intermediate_size": None}, "moe_intermediate_size must be a positive integer"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, but there are only 6 experts"),
        ({"num_local_experts": 8}, "num_experts is 6, but num_local_experts is 8"),
    ],
    ids=str,
)
def test_what_the_graph_does_not_compute_is_refused_by_its_key(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    maple_model.write_config(tmp_path, **changes)
    with pytest.raises((UnsupportedError, SourceError), match=f"^config.json: {words}"):
        plan(tmp_path, "tq2_0")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda tensors: tensors.update(model=tensors.pop("model.layers.0.mlp.experts.3.up_proj.weight")),
        lambda tensors: tensors.pop("model.layers.2.mlp.gate.weight"),
        lambda tensors: tensors.update({"model.layers.1.mlp.expert_bias": np.zeros(6, np.float32)}),
        lambda tensors: tensors.update(
            {"model.layers.1.mlp.experts.6.up_proj.weight": tensors["model.layers.1.mlp.experts.5.up_proj.weight"]}
        ),
    ],
    ids=["expert renamed", "no router", "router with a bias", "an expert too many"],
)
def test_missing_and_surplus_tensors_are_refused(break_it: Callable[[dict[str, Floats]], Any], tmp_path: Path) -> None:
    tensors = {**maple_model.weights()}
    break_it(tensors)
    with pytest.raises(TritggufError, match=r"^the checkpoint (has no tensor|holds) model"):
        convert(maple_model.write(tmp_path / "model", tensors), tmp_path / "out.gguf", "tq2_0", check=False)
