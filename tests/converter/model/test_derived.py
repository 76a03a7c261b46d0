"""Columns in another order, of floats and of codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import checkpoints, gguf_weights
from tests.checkpoint_recipes import RECIPES
from tritgguf.converter import convert
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.core.tensors import CodedRows, CodedTensor, Float32Array, RowIndices
from tritgguf.converter.model.derived import ReorderedCodes, with_columns
from tritgguf.converter.quant.grids import find_grid

ROWS, COLUMNS, RUN = 6, 512, 64
ORDER = np.arange(COLUMNS).reshape(2, -1, RUN).swapaxes(0, 1).ravel()  # the value heads of two key heads


@dataclass(frozen=True)
class Codes(CodedTensor):
    """Codes and scales in memory."""

    codes: np.ndarray
    all_scales: Float32Array

    def scales(self, rows: slice) -> Float32Array:
        return self.all_scales[rows]

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        return CodedRows(self.codes[rows], self.all_scales[rows], self.group)


def some_codes(group: int) -> Codes:
    random = np.random.default_rng(group)
    codes = random.integers(-1, 2, (ROWS, COLUMNS)).astype(np.int8)
    scales = random.uniform(0.5, 2, (ROWS, COLUMNS // group)).astype(np.float16).astype(np.float32)
    return Codes("out_proj", "codes", codes.shape, group, None, codes, scales)  # type: ignore[arg-type]


@pytest.mark.parametrize(("group", "expected"), [(512, 512), (256, 64), (128, 64), (64, 64), (32, 32), (16, 16)])
@pytest.mark.parametrize("rows", [slice(1, 4), np.array([5, 0, 2])], ids=["slice", "indices"])
def test_codes_keep_their_scales(group: int, expected: int, rows: slice | RowIndices) -> None:
    stored = some_codes(group)
    found = with_columns(stored, ORDER, RUN)
    assert isinstance(found, ReorderedCodes)
    assert (found.group, found.shape, found.levels) == (expected, stored.shape, 3)
    np.testing.assert_array_equal(found.read(rows), stored.read(rows)[:, ORDER])
    np.testing.assert_array_equal(found.scales(slice(1, 4)), found.read_codes(slice(1, 4)).scales)
    grid = find_grid(found)
    assert grid is not None
    assert (grid.levels, grid.group) == (3, expected)


def test_floats_are_stored_in_the_order_of_the_graph(tmp_path: Path) -> None:
    folder = checkpoints.build("qwen35", tmp_path / "model")
    name = "model.layers.0.linear_attn.out_proj.weight"
    stored = read_tensors(folder)[name]
    found = with_columns(stored, ORDER[ORDER < 256], RUN)
    expected = checkpoints.weights("qwen35")[name][:, ORDER[ORDER < 256]]
    np.testing.assert_array_equal(found.read(slice(2, 9)), expected[2:9])
    words, dtype = found.floats(slice(2, 9))
    assert (dtype, words.dtype, words.flags.c_contiguous) == ("BF16", np.uint16, True)


@pytest.mark.parametrize(("weights", "type_name"), [("ternary-row", "tq2_0"), ("ternary-block", "q2_0")])
def test_ternary_weights_of_several_value_heads_per_key_head_stay_exact(
    weights: str, type_name: str, tmp_path: Path
) -> None:
    recipe = replace(RECIPES["qwen35"], weights=weights)
    folder = checkpoints.build("qwen35", tmp_path / "model", recipe)
    result = convert(folder, tmp_path / "out.gguf", type_name, check=False)
    assert all(tensor.exact for tensor in result.plan.tensors if tensor.spec.role == "linear")
    expected, found = (
        checkpoints.weights("qwen35", recipe),
        {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(result.out).tensors},
    )
    heads = np.arange(4).reshape(2, 2).T.ravel()
    values = (heads[:, None] * 64 + np.arange(64)).ravel()
    channels = np.concatenate([np.arange(256), 256 + values])
    layer = "model.layers.1.linear_attn."
    for name, source in {
        "ssm_out.weight": expected[f"{layer}out_proj.weight"][:, values],
        "attn_qkv.weight": expected[f"{layer}in_proj_qkv.weight"][channels],
        "attn_gate.weight": expected[f"{layer}in_proj_z.weight"][values],
        "ssm_beta.weight": expected[f"{layer}in_proj_b.weight"][heads],
        "ssm_alpha.weight": expected[f"{layer}in_proj_a.weight"][heads],
        "ssm_conv1d.weight": expected[f"{layer}conv1d.weight"][channels, 0],
        "ssm_dt.bias": expected[f"{layer}dt_bias"][heads],
        "ssm_norm.weight": expected[f"{layer}norm.weight"],
    }.items():
        np.testing.assert_array_equal(found[f"blk.1.{name}"], source, err_msg=name)
    np.testing.assert_allclose(found["blk.1.ssm_a"], -np.exp(expected[f"{layer}A_log"][heads]), rtol=1e-6)
