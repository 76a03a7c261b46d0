"""Four-level grids, {-1, 0, 1, 2} times a scale of either sign: found where they are, never where they aren't."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoints import build
from tests.converter.quant.test_grids import N_COLUMNS, N_ROWS, Rows, bf16
from tests.oracles import libggml
from tritgguf.converter import TensorError, convert, plan
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.quant.codec import ternary_codecs
from tritgguf.converter.quant.grids import find_grid


def on_four_levels(group: int, seed: int = 1, shape: tuple[int, int] = (N_ROWS, N_COLUMNS)) -> np.ndarray:
    """Float32 weights whose every group holds the code 2; half of the scales are negative."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 3, shape)
    codes[:, ::group] = 2
    scales = rng.uniform(0.01, 0.1, (shape[0], shape[1] // group)) * rng.choice([-1, 1], (shape[0], 1))
    return codes.astype(np.float32) * bf16(np.repeat(scales, group, axis=1))


@pytest.mark.parametrize("group", [32, 64, 128, 256, N_COLUMNS])
def test_a_grid_is_found_with_its_widest_group(group: int) -> None:
    grid = find_grid(Rows(on_four_levels(group)))
    assert grid is not None
    assert (grid.levels, grid.group, grid.outliers, grid.ternary) == (4, group, 0, False)
    fitting = {codec.name for codec in ternary_codecs().values() if grid.fits(codec)}
    assert fitting == {name for name, block in (("q4_0", 32), ("q2_0", 64), ("q2_k", 256)) if block <= group}


@pytest.mark.parametrize("group", [16, 24])
def test_narrower_groups_fit_no_type_and_are_no_four_level_grid(group: int) -> None:
    grid = find_grid(Rows(on_four_levels(group, shape=(N_ROWS, 768))))
    assert grid is None or grid.levels != 4


@pytest.mark.parametrize("row", [0, N_ROWS - 1])
@pytest.mark.parametrize("factor", [-2.0, 1.5, 3.0, 0.25])
def test_one_other_value_and_it_is_none(row: int, factor: float) -> None:
    weights = on_four_levels(64)
    weights[row, 64:128] = np.float32(0.05) * np.resize([1, -1, 2, 0], 64)
    weights[row, 100] = np.float32(0.05 * factor)
    grid = find_grid(Rows(weights))
    assert grid is None or grid.levels != 4


def test_five_levels_and_floats_are_none() -> None:
    rng = np.random.default_rng(2)
    five = rng.integers(-2, 3, (N_ROWS, N_COLUMNS)).astype(np.float32) * np.float32(0.03)
    for weights in (five, rng.standard_normal((N_ROWS, N_COLUMNS)).astype(np.float32)):
        grid = find_grid(Rows(weights))
        assert grid is None or grid.levels != 4


def test_ternary_rows_before_four_level_ones_do_not_mislead() -> None:
    weights = on_four_levels(128)
    weights[:300] = np.abs(weights[:300]).max() * np.sign(weights[:300])
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert (grid.levels, grid.group) == (4, 128)


def test_a_scale_that_fp16_rounds_is_said_to_be_rounded() -> None:
    grid = find_grid(Rows(np.repeat(np.float32([[0.1, 0.2, 0.0, -0.1]]), 256, axis=1)))
    assert grid is not None
    assert 1e-5 < grid.fp16_error < 2.0**-11


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama whose linear layers are on four levels per 64 columns, in bf16's values."""
    folder = build("llama-biases", tmp_path / "model")
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    for number, (name, values) in enumerate(sorted(tensors.items())):
        if name.endswith("_proj.weight"):
            tensors[name] = on_four_levels(64, number, values.shape)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file({name: np.asarray(values, np.float32) for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("target", "expected"), [("cuda", "q2_0"), ("ollama", "q4_0")])
def test_auto_stores_them_exactly(model: Path, target: str, expected: str, tmp_path: Path) -> None:
    result = convert(model, tmp_path / "out.gguf", type="auto", target=target, check=False)
    weights, stored = load_file(model / "model.safetensors"), read_gguf(result.out).tensors
    linear = [tensor for tensor in result.plan.tensors if tensor.spec.role == "linear"]
    assert linear
    for tensor in linear:
        assert tensor.codec.name == expected
        assert tensor.exact, tensor.reason
        assert "on a 4-level grid per 64 columns" in tensor.reason
        want = weights[tensor.spec.source]
        found = stored[tensor.spec.name]
        values = libggml.dequantize(found.data.reshape(len(want), -1), found.ggml_type)
        order = slice(None) if tensor.spec.rows is None else tensor.spec.rows
        np.testing.assert_array_equal(values, want[order])


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0", "q2_k"])
def test_other_types_stop_and_name_what_is_exact(model: Path, name: str) -> None:
    with pytest.raises(TensorError, match=rf"4-level grid per 64 columns, which {name} can't hold: .* --type q2_0"):
        plan(model, name)


def test_inspect_calls_them_four_level(model: Path) -> None:
    found = [tensor for tensor in inspect(model).tensors if tensor.role == "linear"]
    assert {(fact.grid.levels, fact.grid.group) for fact in found if fact.grid} == {(4, 64)}
    assert all(fact.exact_types[0] == "q2_0" for fact in found)
