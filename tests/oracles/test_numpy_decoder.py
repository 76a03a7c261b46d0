"""Logits against a decoder in numpy: of models that transformers doesn't have, and of files with `.scale` tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tritgguf.runtime as rt
from tests import bitnet_model, checkpoints, gguf_weights, numpy_decoder, packed_checkpoints, paths
from tests.checkpoint_recipes import RECIPES, config
from tests.packed_checkpoints import PACKED
from tritgguf.converter import convert

GOLDENS = paths.GOLDEN
TOKEN_IDS = [int(word % 320) for word in checkpoints._raw_words("numpy_decoder/token_ids", 96)]
DENSE = ("llama-gqa", "llama-tied", "llama-head-dim", "mistral-no-window", "qwen3")
MIXTURES = ("qwen3moe", "qwen3moe-ternary", "mixtral", "mixtral-ternary")
GOLDEN_ROUNDING = 2e-4  # the goldens are int16 and were computed in float32
ACTIVATIONS_ROUNDED = 5e-2  # to 8 bits, per 32 or 256 values
ALLOWED = {"f16": 2e-3, "tq1_0": ACTIVATIONS_ROUNDED, "tq2_0": ACTIVATIONS_ROUNDED, "q2_0": ACTIVATIONS_ROUNDED,
           "q4_0": ACTIVATIONS_ROUNDED, "q2_k": ACTIVATIONS_ROUNDED}  # fmt: skip


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def recorded(path: Path, key: str) -> np.ndarray:
    with np.load(path) as file:
        values: np.ndarray = file[f"{key}_int16"] * file[f"{key}_step"]
        return values


def reference(name: str, **changes: Any) -> np.ndarray:
    """Return the numpy decoder's logits of a packed checkpoint, its config.json changed."""
    packed = PACKED[name]
    keys = {**config(packed.base), **changes}
    return numpy_decoder.logits(packed_checkpoints.weights(name), keys, TOKEN_IDS, packed.sub_norms)


@pytest.mark.parametrize("name", [*DENSE, *MIXTURES])
def test_the_decoder_computes_what_transformers_does(name: str) -> None:
    keys = config(RECIPES[name])
    keys.setdefault("rope_theta", keys.get("rope_parameters", {}).get("rope_theta"))
    found = numpy_decoder.logits(checkpoints.weights(name), keys, checkpoints.token_ids(name))
    assert relative_error(found, recorded(GOLDENS / "logits" / f"{name}.npz", "weights")) < GOLDEN_ROUNDING


def test_the_decoder_has_sub_norms_where_transformers_bitnet_has_them() -> None:
    keys = {
        "hidden_size": bitnet_model.HIDDEN,
        "num_hidden_layers": bitnet_model.LAYERS,
        "num_attention_heads": bitnet_model.HEADS,
        "num_key_value_heads": bitnet_model.KV_HEADS,
        "rms_norm_eps": bitnet_model.RMS_EPSILON,
        "rope_theta": bitnet_model.ROPE_THETA,
        "hidden_act": "relu2",
    }
    sub_norms = ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
    found = numpy_decoder.logits(bitnet_model.state_dict(), keys, bitnet_model.token_ids(), sub_norms)
    assert relative_error(found, recorded(GOLDENS / "bitnet.npz", "logits")) < GOLDEN_ROUNDING


@pytest.mark.parametrize(
    ("name", "type_name"),
    [("1bitllm", name) for name in ("f16", "tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0")]
    + [("bitcpm", name) for name in ("f16", "q2_0", "q4_0")]
    # Their scales lie beside the weights, as float32, for the graph to multiply by.
    + [(name, type_name) for name in ("falcon3", "qwen3-tensor") for type_name in ("tq1_0", "q2_0", "q4_0")],
)
def test_the_runtime_computes_what_the_model_does(name: str, type_name: str, tmp_path: Path) -> None:
    folder = packed_checkpoints.build(name, tmp_path / "model")
    file = convert(folder, tmp_path / "out.gguf", type=type_name, check=False).out
    with rt.open(file, n_ctx=len(TOKEN_IDS)) as session:
        found = session.logits(TOKEN_IDS)
    if name != "bitcpm" and type_name != "f16":
        assert sum(tensor.endswith(".scale") for tensor in gguf_weights.types(file)) == 14
    expected = reference(name)
    error = relative_error(found, expected)
    assert error <= ALLOWED[type_name], f"relative error {error:.2e}"
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("1bitllm", {"hidden_act": "relu2"}),
        ("1bitllm", {"rope_theta": 500000.0}),
        ("1bitllm", {"rms_norm_eps": 0.05}),
        ("bitcpm", {"scale_emb": 1}),
        ("bitcpm", {"scale_depth": 1.0}),
        ("bitcpm", {"dim_model_base": 256}),
        ("bitcpm", {"rope_theta": 500000.0}),
    ],
    ids=str,
)
def test_a_lost_number_would_show(name: str, changes: dict[str, Any]) -> None:
    """Each changes the logits by more than any tolerance above."""
    assert relative_error(reference(name, **changes), reference(name)) > ACTIVATIONS_ROUNDED
