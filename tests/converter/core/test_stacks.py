"""A stack's rows are those of its matrices, one after the other, however these are stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests import packed_checkpoints
from tests.oracles import libggml
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.core.stacks import MIXED, Stack
from tritgguf.converter.core.tensors import Float32Array, RowIndices, SourceTensor
from tritgguf.converter.errors import TensorError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import OnGrid
from tritgguf.converter.quant.codec import ternary_codec
from tritgguf.converter.quant.grid import Grid
from tritgguf.converter.quant.grids import find_grid

EXPERTS, ROWS, COLUMNS = 5, 12, 64
CONFIG = {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}
SELECTIONS = [
    slice(None),
    slice(0, 0),
    slice(3, 7),
    slice(10, 14),
    slice(12, 24),
    slice(11, 49),
    slice(58, 100),
    np.array([0, 59, 12, 13, 1, 24], np.int64),
    np.array([], np.int64),
    np.arange(59, -1, -1),
]


@dataclass(frozen=True)
class Experts:
    """A stack, and what it must hold."""

    stack: Stack
    values: Float32Array


def trits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (EXPERTS, ROWS, COLUMNS)).astype(np.int8)


def stored(folder: Path, kinds: list[str]) -> Experts:
    """Write one expert of each kind, a dtype or "packed", and read them as a checkpoint's."""
    entries: packed_checkpoints.Stored = {}
    scales = (np.arange(EXPERTS, dtype=np.float32) + 1) / 8
    values = trits(1) * scales[:, None, None]
    for number, kind in enumerate(kinds):
        name = f"expert.{number}.weight"
        if kind == "packed":
            digits = packed_checkpoints.pack_bitnet(trits(1)[number])
            entries[name] = ("U8", digits.shape, digits.tobytes())
            entries[f"{name}_scale"] = packed_checkpoints.floats(scales[number : number + 1], "F32")
        else:
            entries[name] = packed_checkpoints.floats(values[number], kind)
    packed_checkpoints.write_tensors(folder, entries)
    config = CONFIG if "packed" in kinds else {}
    _, tensors = read_packing(config, read_tensors(folder), {name for name in entries if name.endswith("weight")})
    return Experts(Stack.of("experts", [tensors[f"expert.{number}.weight"] for number in range(EXPERTS)]), values)


KINDS = {
    "BF16": ["BF16"] * EXPERTS,
    "bitnet packing": ["packed"] * EXPERTS,
    MIXED: ["packed", "F32", "packed", "BF16", "F16"],
}


@pytest.fixture(params=KINDS)
def experts(request: pytest.FixtureRequest, tmp_path: Path) -> Experts:
    found = stored(tmp_path, KINDS[request.param])
    assert found.stack.dtype == request.param
    return found


@pytest.mark.parametrize("rows", SELECTIONS, ids=str)
def test_its_rows_are_those_of_its_matrices(rows: slice | RowIndices, experts: Experts) -> None:
    expected = experts.values.reshape(-1, COLUMNS)[rows]
    np.testing.assert_array_equal(experts.stack.read(rows), expected)
    words, dtype = experts.stack.floats(rows)
    assert dtype == ("BF16" if experts.stack.dtype == "BF16" and len(expected) else "F32")
    assert words.shape == expected.shape
    coded = experts.stack.read_codes(rows)
    if experts.stack.dtype == "bitnet packing" and len(expected):
        assert coded is not None
        np.testing.assert_array_equal(coded.dequantize(), expected)
    for act in (experts.stack.prefetch, experts.stack.read_now, experts.stack.evict):
        act(rows)
    assert sum(part.size for part in experts.stack.on_disk(slice(None))) > 0


def test_kernels_read_the_rows_of_one_matrix(tmp_path: Path) -> None:
    stack = stored(tmp_path, KINDS["bitnet packing"]).stack
    assert stack.kernel_packing == "four rows"
    assert stack.read_packed(slice(12, 24)) is not None
    assert stack.read_packed(slice(12, 25)) is None
    assert stored(tmp_path, KINDS[MIXED]).stack.kernel_packing is None


@pytest.mark.parametrize("number", [0, 3])
def test_damage_is_told_with_the_matrix_s_own_name(number: int, tmp_path: Path) -> None:
    values = np.ones((EXPERTS, ROWS, COLUMNS), np.float32)
    values[number, 7, 5] = np.nan
    entries = {f"expert.{n}.weight": packed_checkpoints.floats(values[n], "F32") for n in range(EXPERTS)}
    packed_checkpoints.write_tensors(tmp_path, entries)
    stack = Stack.of("experts", list(read_tensors(tmp_path).values()))
    with pytest.raises(TensorError, match=rf"expert\.{number}\.weight has 1 NaN .*row 7, column 5"):
        find_grid(stack)


def test_a_view_of_rows_is_a_tensor(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((EXPERTS, 2 * ROWS, COLUMNS)).astype(np.float32)
    packed_checkpoints.write_tensors(tmp_path, {"all": packed_checkpoints.floats(values, "F32")})
    whole = read_tensors(tmp_path)["all"]
    for number, matrix in enumerate(whole.matrices()):
        assert (matrix.shape, matrix.n_bytes) == ((2 * ROWS, COLUMNS), whole.n_bytes // EXPERTS)
        np.testing.assert_array_equal(matrix.read(slice(3, 99)), values[number, 3:])
        np.testing.assert_array_equal(matrix.read(np.array([5, 0, 5])), values[number, [5, 0, 5]])
        (disk,) = matrix.on_disk(slice(1, 3))
        np.testing.assert_array_equal(disk.view(np.float32).reshape(2, COLUMNS), values[number, 1:3])


# --- grids -----------------------------------------------------------------------------------------------------------


def grid_of(values: Float32Array, tmp_path: Path) -> Grid | None:
    entries = {f"expert.{n}.weight": packed_checkpoints.floats(matrix, "F32") for n, matrix in enumerate(values)}
    packed_checkpoints.write_tensors(tmp_path, {**entries, "all": packed_checkpoints.floats(values, "F32")})
    tensors: dict[str, SourceTensor] = dict(read_tensors(tmp_path))
    whole = tensors.pop("all")
    found = find_grid(Stack.of("experts", list(tensors.values())))
    assert find_grid(whole) == found  # one tensor of three dimensions, as in a GGUF file, is treated alike
    return found


def test_each_matrix_has_scales_of_its_own(tmp_path: Path) -> None:
    scales = np.float32([0.5, 0.1, 3, 0.25, 0.7])
    grid = find_grid(stored(tmp_path, KINDS["bitnet packing"]).stack)
    assert grid is not None
    assert (grid.extent, grid.group, grid.scale) == ("matrix", COLUMNS, None)
    found = grid_of(trits(3) * scales[:, None, None], tmp_path)
    assert found is not None
    assert (found.levels, found.extent, found.group) == (3, "matrix", COLUMNS)
    assert found.scales == tuple(map(float, scales))
    assert found.fp16_error > 0
    np.testing.assert_allclose(found.zeros, (trits(3) == 0).mean())


def test_the_narrowest_groups_and_the_most_levels_count(tmp_path: Path) -> None:
    values = trits(4).astype(np.float32)
    values[1] *= np.arange(1, ROWS + 1, dtype=np.float32)[:, None]
    found = grid_of(values, tmp_path)
    assert found is not None
    assert (found.extent, found.group, found.scales) == ("row", COLUMNS, None)
    values[2, :, 32:] *= 4
    found = grid_of(values, tmp_path)
    assert found is not None
    assert (found.extent, found.group) == ("32 columns", 32)
    values[3] = np.random.default_rng(5).integers(-1, 3, (ROWS, COLUMNS))
    found = grid_of(values, tmp_path)
    assert found is not None
    assert (found.levels, found.group, found.outliers) == (4, 32, 0)
    assert found.fits(ternary_codec("q4_0"))
    assert not found.fits(ternary_codec("tq2_0"))
    values[4] = np.random.default_rng(6).standard_normal((ROWS, COLUMNS))
    assert grid_of(values, tmp_path) is None


def test_outliers_of_all_matrices_are_counted(tmp_path: Path) -> None:
    values = np.tile(trits(7), (1, 4, 4)).astype(np.float32)
    values[0, 0, 0], values[4, 47, 255] = 0.25, 0.125
    found = grid_of(values, tmp_path)
    assert found is not None
    assert (found.levels, found.outliers) == (3, 2)


def test_a_matrix_of_zeros_hides_no_other_scale(tmp_path: Path) -> None:
    values = trits(8) * np.float32(0.1)
    values[2] = 0
    found = grid_of(values, tmp_path)
    assert found is not None
    assert found.scales == tuple(np.float32([0.1, 0.1, 0, 0.1, 0.1]).tolist())


def test_ggml_reads_what_is_encoded_piece_by_piece(experts: Experts) -> None:
    grid, codec = find_grid(experts.stack), ternary_codec("q4_0")
    assert grid is not None
    assert grid.fits(codec)
    encoder = OnGrid(TensorSpec("experts", "blk.0.ffn_up_exps.weight", experts.stack.shape, "linear"), codec, grid)
    written = np.zeros((EXPERTS * ROWS, codec.row_bytes(COLUMNS)), np.uint8)
    for rows in (rows for slices in encoder.pieces(experts.stack) for rows in slices):
        assert not written[rows].any()  # no row twice
        written[rows] = encoder.encode(experts.stack, rows)
    found = libggml.dequantize(written, GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(found.reshape(experts.values.shape), experts.values)
