"""A model in another basis computes the same, by llama.cpp; its weights are those that the rule says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import checkpoints
from tritgguf import runtime
from tritgguf.converter.conversion.pipeline import write_model
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.model.rotated import KEY, OUTPUT, Basis, can_be_rotated, has_own_output, rotated
from tritgguf.converter.planning.request import Request
from tritgguf.converter.verification.verification import verify

RECIPES = [
    "llama-gqa", "llama-tied", "llama-biases", "llama-head-dim", "llama-hidden-192", "mistral-window", "qwen2",
    "qwen2-tied", "qwen3", "hunyuan-alpha", "smollm3", "phi3", "granite",
]  # fmt: skip


def logits(model: Model, ids: list[int], path: Path) -> NDArray[np.float32]:
    write_model(model, path, Request.named("f32", "mse", embedding_type="f32", output_type="f32"), check=None)
    with runtime.open(path) as opened:
        return opened.logits(ids)


@pytest.mark.parametrize("name", RECIPES)
def test_a_rotated_model_computes_the_same(name: str, tmp_path: Path) -> None:
    folder = checkpoints.build(name, tmp_path / name)
    model, ids = open_model(folder), checkpoints.token_ids(name)[:24]
    assert can_be_rotated(model)
    turned = rotated(model)
    wanted, found = logits(model, ids, tmp_path / "plain.gguf"), logits(turned, ids, tmp_path / "rotated.gguf")
    assert np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max()
    assert has_own_output(turned)
    assert turned.metadata[KEY].data == "hadamard-1"
    checked = verify(folder, tmp_path / "rotated.gguf")
    assert checked.problems == []


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "qwen3moe", "qwen35"])
def test_models_that_change_what_they_add_stay(name: str, tmp_path: Path) -> None:
    assert not can_be_rotated(open_model(checkpoints.build(name, tmp_path / name)))


@pytest.mark.parametrize("size", [64, 96, 80, 576, 5])
def test_a_basis_is_orthogonal_and_spreads_each_value(size: int) -> None:
    turned = Basis(size).turned(np.eye(size))
    np.testing.assert_allclose(turned @ turned.T, np.eye(size), atol=1e-12)
    assert np.abs(turned).max() <= np.sqrt(2 / size) + 1e-12
    twice = Basis(size).turned(np.tile(np.eye(size), 2))
    np.testing.assert_array_equal(twice, np.tile(turned, 2))


@pytest.mark.parametrize("size", [3, 64, 96, 80, 576])
def test_a_row_is_turned_to_the_same_bits_whatever_is_read_with_it(size: int) -> None:
    rows = np.random.default_rng(size).standard_normal((150, size))
    turned = Basis(size).turned(rows)
    for n_rows in (1, 7, 64):
        pieces = [Basis(size).turned(rows[start : start + n_rows]) for start in range(0, len(rows), n_rows)]
        np.testing.assert_array_equal(np.concatenate(pieces), turned)


def test_another_weight_is_found(tmp_path: Path) -> None:
    """Verify knows the basis: a file whose rotated weights aren't those of the source is wrong."""
    folder = checkpoints.build("qwen2", tmp_path / "model")
    model = rotated(open_model(folder))
    assert model.tensors is not None
    tensors = {**model.tensors, "model.layers.0.mlp.up_proj.weight": model.tensors["model.layers.1.mlp.up_proj.weight"]}
    write_model(replace(model, tensors=tensors), tmp_path / "out.gguf", Request.named("f16", "mse"), check=None)
    problems = verify(folder, tmp_path / "out.gguf").problems
    assert len(problems) == 1
    assert problems[0].startswith("blk.0.ffn_up.weight (F16)")
    assert OUTPUT not in problems[0]
