"""Grid detection: what is ternary is found with its extent, what isn't is never called so."""

from dataclasses import dataclass

import numpy as np
import pytest

from tritgguf.converter.core.tensors import Floats, SourceTensor
from tritgguf.converter.quant import grids
from tritgguf.converter.quant.codec import ternary_codecs
from tritgguf.converter.quant.grids import code_on_grid, find_grid

N_ROWS, N_COLUMNS = 600, 1024


@pytest.fixture(autouse=True, params=[1 << 16, grids.CHUNK], ids=["many chunks", "few"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "CHUNK", request.param)


@dataclass
class Rows(SourceTensor):
    """Float rows in memory."""

    values: np.ndarray
    name: str = "w"
    dtype: str = "F32"

    @property
    def n_bytes(self) -> int:
        return self.values.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, rows):
        return self.values[rows]


def trits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (N_ROWS, N_COLUMNS)).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def scales_of(extent: str, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if extent == "tensor":
        return np.full((N_ROWS, 1), rng.uniform(0.01, 0.1), np.float32)
    if extent == "row shard":
        return np.repeat(rng.uniform(0.01, 0.1, (4, 1)), N_ROWS // 4, axis=0).astype(np.float32)
    if extent == "row":
        return rng.uniform(0.01, 0.1, (N_ROWS, 1)).astype(np.float32)
    return np.repeat(rng.uniform(0.01, 0.1, (N_ROWS, N_COLUMNS // 256)), 256, axis=1).astype(np.float32)


@pytest.mark.parametrize("extent", ["tensor", "row shard", "row", "256 columns"])
@pytest.mark.parametrize("rounded", [bf16, lambda v: v.astype(np.float16).astype(np.float32)], ids=["bf16", "fp16"])
def test_a_grid_is_found_and_exact(extent: str, rounded) -> None:
    weights = rounded(trits(1) * scales_of(extent))
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert grid.extent == extent
    assert grid.fp16_error == 0
    assert grid.zeros == pytest.approx((weights == 0).mean())
    coded = code_on_grid(Floats.of(weights), 256)
    assert coded is not None
    np.testing.assert_array_equal(coded.dequantize(), weights)


def test_a_float32_scale_is_found_but_not_called_exact() -> None:
    weights = trits(2) * np.float32(0.0123456789)
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert grid.fp16_error == pytest.approx(abs(np.float16(0.0123456789) / np.float32(0.0123456789) - 1), rel=1e-3)
    assert 0 < grid.fp16_error < 5e-4


@pytest.mark.parametrize(
    ("row", "column"), [(0, 0), (N_ROWS - 1, N_COLUMNS - 1), (N_ROWS // 2, 300)], ids=["first", "last", "middle"]
)
@pytest.mark.parametrize("outlier", [0.021, 0.001, 7.0])
def test_one_value_off_the_grid_anywhere_is_counted_and_never_exact(row: int, column: int, outlier: float) -> None:
    weights = bf16(trits(3) * np.float32(0.02))
    weights[row, column] = bf16(np.float32([outlier]))[0]
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert grid.outliers == 1
    assert not grid.ternary
    assert not any(grid.fits(codec) for codec in ternary_codecs().values())


def test_outliers_are_counted_as_the_bonsai_models_have_them() -> None:
    """One value in 30,000 off a grid per 128 columns."""
    rng = np.random.default_rng(14)
    scales = np.repeat(rng.uniform(0.01, 0.1, (N_ROWS, N_COLUMNS // 128)), 128, axis=1)
    weights = bf16(trits(14) * scales)
    places = rng.choice(weights.size, 20, replace=False)
    weights.ravel()[places] = bf16(rng.standard_normal(20).astype(np.float32))
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert (grid.levels, grid.group, grid.outliers) == (3, 128, 20)


@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_a_finer_grid_than_the_block_is_found_but_does_not_fit_it(group: int) -> None:
    scales = np.repeat(np.random.default_rng(4).uniform(0.01, 0.1, (N_ROWS, N_COLUMNS // group)), group, axis=1)
    grid = find_grid(Rows(bf16(trits(4) * scales)))
    assert grid is not None
    assert (grid.group, grid.extent, grid.outliers) == (group, f"{group} columns", 0)
    fitting = {codec.block for codec in ternary_codecs().values() if grid.fits(codec)}
    assert fitting == {block for block in (32, 64) if block <= group}


@pytest.mark.parametrize("group", [16, 64, 256])
@pytest.mark.parametrize("first", [20, 300, 599])
def test_what_the_first_rows_share_is_not_believed_of_the_others(first: int, group: int) -> None:
    scales = np.repeat(np.random.default_rng(15).uniform(0.01, 0.1, (N_ROWS, N_COLUMNS // group)), group, axis=1)
    scales[:first] = 0.02
    weights = bf16(trits(15) * scales)
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert (grid.group, grid.extent, grid.outliers) == (group, f"{group} columns", 0)
    assert grid.zeros == pytest.approx((weights == 0).mean())
    weights[first // 2, 5] = 0.05
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert (grid.group, grid.outliers) == (group, 1)


@pytest.mark.parametrize(("levels", "highest"), [(9, 4), (27, 13)])
@pytest.mark.parametrize("rounded", [bf16, lambda v: v.astype(np.float16).astype(np.float32)], ids=["bf16", "fp16"])
def test_nine_and_twenty_seven_levels_are_told_from_three(levels: int, highest: int, rounded) -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(-highest, highest + 1, (N_ROWS, N_COLUMNS))
    scales = np.repeat(rng.uniform(0.01, 0.1, (N_ROWS, N_COLUMNS // 16)), 16, axis=1)
    grid = find_grid(Rows(rounded((codes * scales / highest).astype(np.float32))))
    assert grid is not None
    assert grid.levels == levels
    assert not grid.ternary


def test_ordinary_weights_are_not_a_grid() -> None:
    weights = np.random.default_rng(6).standard_normal((N_ROWS, N_COLUMNS)).astype(np.float32)
    assert find_grid(Rows(weights)) is None


def test_all_zero_rows_and_tensors_are_grids() -> None:
    weights = bf16(trits(8) * np.float32(0.02))
    weights[10:20] = 0
    grid = find_grid(Rows(weights))
    assert grid is not None
    assert grid.extent == "tensor"
    empty = find_grid(Rows(np.zeros((3, 256), np.float32)))
    assert empty is not None
    assert empty.fp16_error == 0
    assert empty.zeros == 1


def test_a_tiny_scale_that_fp16_loses_is_not_exact() -> None:
    grid = find_grid(Rows(bf16(trits(9) * np.float32(1e-9))))
    assert grid is not None
    assert grid.fp16_error == 1.0
