"""The way back of what was derived: delta nets, LongRoPE's two sets, and llama.cpp's own spellings of keys."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from tests import checkpoints
from tests.checkpoint_recipes import RECIPES, config
from tests.converter.export.test_from_gguf import FLOATS, assert_same_file, keys_but_name
from tests.gguf_edit import rewrite
from tritgguf.converter import convert, form_named, quantize
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.delta_net import logarithm_of_minus, minus_exponential

Floats = NDArray[np.float32]
Folder = Callable[[str], Path]
DERIVED = ["phi3-longrope-long", "qwen35", "qwen3next"]
# What config.json can spell in several ways; the keys that the file gets are compared instead.
SPELLINGS = {"rope_parameters", "rope_scaling", "rope_theta", "dtype", "torch_dtype", "full_attention_interval"}
FLOATS_16 = form_named(None, dtype="f16")
F32 = GGMLQuantizationType.F32


def read_config(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", DERIVED)
def test_an_f16_folder_is_the_checkpoint(name: str, model: Folder, tmp_path: Path) -> None:
    made = convert(model(name), tmp_path / "made.gguf", "f16", check=False).out
    result = quantize(made, tmp_path / "folder", FLOATS_16)
    assert not result.plan.notes
    stored, originals = read_tensors(result.out), checkpoints.weights(name)
    assert stored.keys() == originals.keys()
    for key, values in originals.items():
        found = stored[key]
        assert (found.shape, found.dtype) == (values.shape, "F16"), key
        expected = values.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found.read(slice(None)).reshape(values.shape), expected, err_msg=key)
    keys = read_config(result.out)
    expected_keys = {key: value for key, value in config(RECIPES[name]).items() if key not in SPELLINGS}
    assert {key: keys.get(key) for key in expected_keys} == expected_keys
    again = read_gguf(convert(result.out, tmp_path / "again.gguf", "f16", check=False).out)
    assert keys_but_name(again) == keys_but_name(read_gguf(made))


def test_both_sets_of_longrope_are_spelled_as_transformers_4_takes_them(model: Folder, tmp_path: Path) -> None:
    """Its Phi3Config allows three keys, and takes the original length from the top."""
    made = convert(model("phi3-longrope-long"), tmp_path / "made.gguf", "f16", check=False).out
    keys = read_config(quantize(made, tmp_path / "folder", FLOATS).out)
    recipe = RECIPES["phi3-longrope-long"]
    assert recipe.rope_scaling is not None
    scaling = keys["rope_scaling"]
    assert isinstance(scaling, dict)
    assert scaling.keys() == {"type", "short_factor", "long_factor"}
    for key in ("short_factor", "long_factor"):
        np.testing.assert_array_equal(np.float32(scaling[key]), np.float32(recipe.rope_scaling[key]))
    assert (keys["original_max_position_embeddings"], keys["max_position_embeddings"]) == (64, 512)
    other = rewrite(made, tmp_path / "other.gguf", keys={"phi3.rope.scaling.attn_factor": 1.25})
    keys = read_config(quantize(other, tmp_path / "louder", FLOATS).out)
    assert isinstance(keys["rope_scaling"], dict)
    assert keys["rope_scaling"]["attention_factor"] == 1.25
    one_set = rewrite(made, tmp_path / "one.gguf", tensors={"rope_factors_short.weight": None})
    with pytest.raises((UnsupportedError, SourceError), match=r"attn_factor|rope_factors"):
        quantize(one_set, tmp_path / "none", FLOATS)


def test_the_interval_of_full_attentions_is_enough(model: Folder, tmp_path: Path) -> None:
    """As in files that llama.cpp's script made before it wrote the layers."""
    made = convert(model("qwen35-one-to-one"), tmp_path / "made.gguf", "f16", check=False).out
    keys = {"qwen35.full_attention_interval": 2, "qwen35.attention.recurrent_layers": None}
    folder = quantize(rewrite(made, tmp_path / "other.gguf", keys=keys), tmp_path / "folder", FLOATS).out
    assert_same_file(convert(folder, tmp_path / "again.gguf", "f16", check=False).out, made)


@pytest.mark.parametrize("name", ["qwen35", "qwen3next"])
def test_layers_that_guess_further_tokens_are_left_out(name: str, model: Folder, tmp_path: Path) -> None:
    made = convert(model(name), tmp_path / "made.gguf", "f16", check=False).out
    linear = read_gguf(made).metadata[f"{name}.attention.recurrent_layers"].data
    changes = {"block_count": 5, "nextn_predict_layers": 1, "attention.recurrent_layers": [*linear, False]}
    other = rewrite(
        made,
        tmp_path / "other.gguf",
        keys={f"{name}.{key}": value for key, value in changes.items()},
        tensors={"blk.4.nextn.eh_proj.weight": (np.zeros((256, 512), np.float32), F32)},
    )
    result = quantize(other, tmp_path / "folder", FLOATS)
    assert result.plan.notes == (
        "1 tensors such as blk.4.nextn.eh_proj.weight are left out: the model computes without them",
    )
    assert_same_file(convert(result.out, tmp_path / "again.gguf", "f16", check=False).out, made)


# --- rates of decay ----------------------------------------------------------------------------------------------


WORDS = np.arange(1 << 16, dtype=np.uint32)


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ((WORDS << 16).view(np.float32), 2.0**-16),
        (WORDS.astype(np.uint16).view(np.float16).astype(np.float32), 2.0**-12),
    ],
    ids=["bfloat16", "fp16"],
)
def test_the_logarithm_of_a_rate_is_the_one_with_the_fewest_digits(values: Floats, least: float) -> None:
    stored = values[(np.abs(values) < 80) & (np.abs(values) > least)]  # all there are
    assert len(stored) > 5000
    np.testing.assert_array_equal(logarithm_of_minus(minus_exponential(stored), "ssm_a"), stored)


def test_a_rate_that_no_float_has_gets_the_nearest() -> None:
    rates = -np.random.default_rng(1).uniform(1e-6, 40, 20000).astype(np.float32)
    found = logarithm_of_minus(rates, "ssm_a")
    errors = np.abs(minus_exponential(found) / rates.astype(np.float64) - 1)
    assert 0 < np.count_nonzero(errors) < len(errors)
    for rate, value, error in zip(rates.tolist(), found.tolist(), errors.tolist(), strict=True):
        assert abs(value - math.log(-rate)) <= math.ulp(value) * 2.0**29 / 2 * 1.01 or error == 0
        assert error <= max(1, abs(value)) * 2.0**-23


def test_rates_of_another_file_are_restored_as_far_as_floats_allow(model: Folder, tmp_path: Path) -> None:
    made = convert(model("qwen35"), tmp_path / "made.gguf", "f16", check=False).out
    rates = -np.linspace(9, 11, 4, dtype=np.float32)
    other = rewrite(made, tmp_path / "other.gguf", tensors={"blk.1.ssm_a": (rates, F32)})
    result = quantize(other, tmp_path / "folder", FLOATS)
    (note,) = result.plan.notes
    assert "of 1 tensors such as blk.1.ssm_a are made of no float32 value exactly" in note
    again = read_gguf(convert(result.out, tmp_path / "again.gguf", "f16", check=False).out)
    np.testing.assert_allclose(again.tensors["blk.1.ssm_a"].read(slice(None))[0], rates, rtol=2.0**-22, atol=0)
    rates[2] = 0.5
    wrong = rewrite(made, tmp_path / "wrong.gguf", tensors={"blk.1.ssm_a": (rates, F32)})
    with pytest.raises(SourceError, match=r"blk\.1\.ssm_a: rates of decay must be negative, found 0\.5"):
        quantize(wrong, tmp_path / "none", FLOATS)
    assert not (tmp_path / "none").exists()
