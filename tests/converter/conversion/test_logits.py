"""Logits of converted files in the real runtime against logits that transformers gave on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tritgguf.runtime as rt
from tests import checkpoints, paths
from tests.checkpoint_recipes import RECIPES
from tritgguf.converter import convert
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.quant.codec import codecs

GOLDENS = paths.GOLDEN / "logits"
# The F16 KV cache and F16 activations cost about 5e-4; activations in 8 bits per 256 values about 2e-2.
RELATIVE_ERROR, TERNARY_ERROR = 2e-3, 5e-2
SAME_TOP1 = 0.95
# What llama.cpp's graphs don't compute, and a word of the refusal.
REFUSED = {"qwen3-biases": "attention_bias"}
NEEDS_FALLBACK = {"llama-hidden-192"}


def read_golden(name: str) -> dict[str, Any]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        return dict(file)


def runtime_logits(file: Path, token_ids: list[int]) -> NDArray[np.float32]:
    with rt.open(file, n_ctx=len(token_ids)) as session:
        return session.logits(token_ids)


def cases() -> Iterator[tuple[str, str, str]]:
    """Yield recipe, tensor type, and which recorded logits: of the weights as they are or as a method rounds them."""
    for name, recipe in RECIPES.items():
        if name in REFUSED:
            continue
        yield name, "f16", "weights"
        if recipe.weights != "float":
            yield from ((name, codec.name, "weights") for codec in codecs().values() if codec.ternary)
        for method in recipe.methods:
            yield name, "tq2_0", method
            yield name, "tq1_0", method


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_golden_was_recorded_on_these_weights(name, model):
    golden = read_golden(name)
    assert checkpoints.digest(model(name)) == str(golden["checkpoint_sha256"]), "run `make golden` again"
    assert golden["token_ids"].tolist() == checkpoints.token_ids(name)


def test_every_golden_belongs_to_a_recipe():
    assert {path.stem for path in GOLDENS.glob("*.npz")} == set(RECIPES)


@pytest.mark.parametrize(("name", "type_name", "reference"), list(cases()))
def test_the_runtime_computes_what_transformers_does(name, type_name, reference, model, tmp_path):
    golden = read_golden(name)
    expected = golden[f"{reference}_int16"] * golden[f"{reference}_step"]
    method = "mse" if reference == "weights" else reference
    fallback = "f16" if name in NEEDS_FALLBACK else None
    convert(model(name), tmp_path / "out.gguf", type=type_name, method=method, fallback=fallback, check=False)
    found = runtime_logits(tmp_path / "out.gguf", golden["token_ids"].tolist())
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    same_top1 = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    limit = RELATIVE_ERROR if type_name == "f16" else TERNARY_ERROR
    assert error <= limit, f"relative error {error:.2e}, same top-1 {same_top1:.3f}"
    assert same_top1 >= SAME_TOP1, f"relative error {error:.2e}, same top-1 {same_top1:.3f}"


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_graph_lacks_is_refused(name, model, tmp_path):
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        convert(model(name), tmp_path / "out.gguf", type="f16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rope_change", "word"),
    [
        # llama.cpp's qwen3 graph reads neither of the two, and takes no frequencies from the file.
        ({"beta_fast": 8.0}, "beta_fast"),
        ({"beta_slow": 0.5}, "beta_slow"),
        ({"truncate": False}, "truncate"),
        ({"rope_type": "dynamic"}, "dynamic"),
        ({"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "llama3"),
    ],
)
def test_a_rotation_that_the_graph_lacks_is_refused(rope_change, word, tmp_path):
    folder = checkpoints.build("qwen3-yarn", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] |= rope_change
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedError, match=word):
        convert(folder, tmp_path / "out.gguf", type="f16")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0"])
def test_rows_that_do_not_fit_stop_without_the_fallback(type_name, model, tmp_path):
    with pytest.raises(TensorError, match=r"q_proj\.weight.*192.*--fallback f16"):
        convert(model("llama-hidden-192"), tmp_path / "out.gguf", type=type_name)
    assert not list(tmp_path.iterdir())
