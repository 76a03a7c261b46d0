"""Merging LoRA adapters against PEFT's merge_and_unload() (golden/lora, recorded by record_lora.py)."""

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import build
from tests.lora_models import CASES, MODELS, row_step
from tritgguf.converter.checkpoint.adapter import open_adapter
from tritgguf.converter.checkpoint.adapter_config import read_adapter_config
from tritgguf.converter.checkpoint.merged_tensor import MergedTensor
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.core.tensors import Float32Array, SourceTensor

GOLDEN = Path(__file__).parents[2] / "golden" / "lora"
MERGED = np.load(GOLDEN / "merged.npz")
EPSILON = 2.0**-24  # half a unit in the last place of float32, relative


def merged(case: str, folder: Path) -> dict[str, SourceTensor]:
    name = CASES[case][0]
    return open_adapter(GOLDEN / case).merged(read_tensors(build(name, folder, MODELS[name])))


def whole(tensor: SourceTensor) -> Float32Array:
    return tensor.read(slice(None)).reshape(tensor.shape)


def bound(tensor: SourceTensor) -> Float32Array:
    """Return by how much two orders of the same float32 sums can differ, for each value.

    Each of the rank products, their sum, the scaling and the last sum round once, in both programs.
    """
    assert isinstance(tensor, MergedTensor)
    base, right = tensor.base.read(slice(None)), np.abs(tensor.right.rows(slice(None)))
    left = np.ones((1, 1)) if tensor.left is None else np.abs(tensor.left.rows(slice(None)))
    size = np.abs(base) + tensor.scaling * (left @ right.reshape(-1, base.shape[1]))
    steps = left.shape[1] + 3
    if tensor.magnitude is not None:  # the norm, the quotient and the product; the row is scaled to its magnitude
        found = np.abs(tensor.read(slice(None)))
        size, steps = found + size * (found.max() / np.abs(base).max()), steps + base.shape[1]
    return (2 * steps * EPSILON * size).reshape(tensor.shape)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_peft_s(case: str, tmp_path: Path) -> None:
    before, found = read_tensors(build(CASES[case][0], tmp_path, MODELS[CASES[case][0]])), merged(case, tmp_path)
    assert found.keys() == before.keys()
    expected = {key.partition("/")[2]: values for key, values in MERGED.items() if key.startswith(f"{case}/")}
    assert expected
    for name, tensor in found.items():
        step = row_step(tensor.shape)
        values = whole(tensor)[::step]
        if name not in expected:
            np.testing.assert_array_equal(values, whole(before[name])[::step])
        elif isinstance(tensor, MergedTensor):
            assert (np.abs(values - expected[name]) <= bound(tensor)[::step]).all(), name
            assert np.abs(values - whole(before[name])[::step]).max() > 100 * bound(tensor).max(), name
        else:
            np.testing.assert_array_equal(values, expected[name])


def test_the_recorded_cases_use_what_they_are_named_for(tmp_path: Path) -> None:
    layers = {name: tensor for name, tensor in merged("patterns", tmp_path).items() if isinstance(tensor, MergedTensor)}
    scalings = {name.removeprefix("model.layers."): tensor.scaling for name, tensor in layers.items()}
    assert scalings == {
        "0.self_attn.q_proj.weight": 8 / 4,
        "0.self_attn.k_proj.weight": 8 / 3,
        "0.mlp.up_proj.weight": 5 / 4,
        "1.self_attn.q_proj.weight": 8 / 2,
        "1.self_attn.k_proj.weight": 7 / 3,
        "1.mlp.up_proj.weight": 8 / 4,
    }
    assert read_adapter_config(GOLDEN / "rslora").scaling("q_proj") == 3 / 2
    assert read_adapter_config(GOLDEN / "dora").dora
    assert all(part.dtype == "BF16" for part in open_adapter(GOLDEN / "bf16").updates.popitem()[1].values())
