"""Reading safetensors files against the safetensors library."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tests.checkpoints import build
from tritgguf.converter import SourceError, TensorError
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.safetensors_reader import read_file


def test_values_equal_the_library_s(tmp_path: Path) -> None:
    rng = np.random.default_rng(31)
    tensors = {
        "f32": rng.standard_normal((7, 33)).astype(np.float32),
        "f16": rng.standard_normal((5, 3)).astype(np.float16),
        "vector": rng.standard_normal(11).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    ours = read_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as theirs:
        assert set(ours) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118 (not a dict)
            expected = theirs.get_tensor(name)
            assert ours[name].shape == expected.shape
            found = ours[name].read(slice(None))
            np.testing.assert_array_equal(found.reshape(expected.shape), expected.astype(np.float32))


def test_bf16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    bits = np.arange(0, 1 << 16, dtype=np.uint32)
    bits = bits[(bits >> 7 & 0xFF) != 0xFF].astype("<u2")  # every finite bf16
    path = tmp_path / "b.safetensors"
    header = json.dumps({"w": {"dtype": "BF16", "shape": [len(bits)], "data_offsets": [0, bits.nbytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    with safe_open(path, framework="numpy") as theirs:
        assert theirs.get_slice("w").get_dtype() == "BF16"
    values = read_file(path)["w"].read(slice(None))
    np.testing.assert_array_equal(values.view(np.uint32)[0], bits.astype(np.uint32) << 16)


def test_rows_are_read_by_slice_and_by_index(tmp_path: Path) -> None:
    values = np.random.default_rng(32).standard_normal((20, 8)).astype(np.float32)
    save_file({"w": values}, tmp_path / "c.safetensors")
    tensor = read_file(tmp_path / "c.safetensors")["w"]
    np.testing.assert_array_equal(tensor.read(slice(3, 9)), values[3:9])
    order = np.array([19, 0, 7, 7])
    np.testing.assert_array_equal(tensor.read(order), values[order])


@pytest.mark.parametrize("by_index", [False, True])
def test_the_place_of_a_nan_is_named_in_the_checkpoint_s_rows(by_index: bool, tmp_path: Path) -> None:
    values = np.zeros((20, 8), np.float32)
    values[13, 5] = np.nan
    save_file({"w": values}, tmp_path / "d.safetensors")
    rows = np.array([2, 13, 4]) if by_index else slice(10, 20)
    with pytest.raises(TensorError, match="row 13, column 5"):
        read_file(tmp_path / "d.safetensors")["w"].read(rows)


def test_shards_hold_what_the_single_file_would(tmp_path: Path) -> None:
    tensors = open_checkpoint(build("qwen2", tmp_path / "model"), linear=()).tensors
    assert tensors is not None
    assert len({tensor.file.name for tensor in tensors.values()}) == 3  # type: ignore[attr-defined]
    for path in (tmp_path / "model").glob("model-*.safetensors"):
        with safe_open(path, framework="numpy") as theirs:
            assert set(theirs.keys()) <= set(tensors)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_read_as_the_library_reads_it(position: int, byte: int, tmp_path_factory) -> None:
    """Flip one byte of a header: never another exception, and never accepted where the library refuses."""
    path = tmp_path_factory.mktemp("fuzz") / "e.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float16)}, path)
    blob = bytearray(path.read_bytes())
    blob[position % len(blob)] = byte
    path.write_bytes(blob)
    try:
        found = read_file(path)
    except SourceError:
        return
    try:
        with safe_open(path, framework="numpy") as theirs:
            names = set(theirs.keys())
    except SafetensorError as error:
        pytest.fail(f"accepted what the library refuses: {error}")
    assert set(found) == names
