"""Q2_0 in the package gguf: written and read by it, and read alike by ggml."""

import copy
import ctypes
import importlib
import pickle
from enum import IntEnum
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from tests.oracles import libggml
from tritgguf.converter.quant import ggml_types


def random_blocks(seed: int, n_rows: int, n_blocks: int) -> np.ndarray:
    """Q2_0 rows with every code, and scales of both signs."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_rows, n_blocks, 18), dtype=np.uint8)
    blocks[..., :2] = rng.standard_normal((n_rows, n_blocks, 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(n_rows, -1)


def test_the_members_are_found_in_every_way_an_enum_offers() -> None:
    for kind, name, value in (
        (gguf.GGMLQuantizationType, "Q2_0", 42),
        (gguf.LlamaFileType, "MOSTLY_Q2_0", 41),
    ):
        member = getattr(ggml_types, name)
        assert isinstance(member, kind)
        assert (member.name, member.value, int(member)) == (name, value, value)
        assert kind(value) is kind[name] is getattr(kind, name) is member
        assert kind.__members__[name] is member
        assert member in kind
        assert list(kind).count(member) == 1
        assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_0 == ggml_types.MOSTLY_Q2_0


def test_registering_twice_changes_nothing() -> None:
    before = (ggml_types.Q2_0, list(gguf.GGMLQuantizationType), list(gguf.LlamaFileType), dict(gguf.GGML_QUANT_SIZES))
    again = importlib.reload(ggml_types)
    after = (again.Q2_0, list(gguf.GGMLQuantizationType), list(gguf.LlamaFileType), dict(gguf.GGML_QUANT_SIZES))
    assert after == before
    assert after[0] is before[0]


def test_a_member_that_gguf_has_is_kept_and_a_conflict_is_an_error() -> None:
    class Later(IntEnum):
        Q2_0 = 42

    assert ggml_types.member(Later, "Q2_0", 42) is Later.Q2_0
    assert list(Later) == [Later.Q2_0]
    with pytest.raises(ValueError, match=r"Later\.Q2_0 is 42; expected 43"):
        ggml_types.member(Later, "Q2_0", 43)


def test_gguf_dequantizes_q2_0_as_ggml_does() -> None:
    stored = random_blocks(21, 40, 5)
    ours = gguf.quants.dequantize(stored, ggml_types.Q2_0)
    np.testing.assert_array_equal(ours, libggml.dequantize(stored, ggml_types.Q2_0))


def test_a_file_with_q2_0_is_written_and_read(tmp_path: Path) -> None:
    stored, path = random_blocks(22, 6, 3), tmp_path / "q2_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(ggml_types.MOSTLY_Q2_0)
    writer.add_tensor("blk.0.attn_q.weight", stored, raw_dtype=ggml_types.Q2_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    (tensor,) = gguf.GGUFReader(path).tensors
    assert tensor.tensor_type is ggml_types.Q2_0
    assert tensor.shape.tolist() == [192, 6]
    np.testing.assert_array_equal(tensor.data, stored)

    class Parameters(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    ggml = libggml.library()
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = (ctypes.c_char_p, Parameters)
    ggml.gguf_get_tensor_size.restype = ctypes.c_size_t
    ggml.gguf_get_tensor_size.argtypes = ggml.gguf_get_tensor_type.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    ggml.gguf_free.argtypes = (ctypes.c_void_p,)
    file = ggml.gguf_init_from_file(str(path).encode(), Parameters(True, None))
    assert file
    assert ggml.gguf_get_tensor_type(file, 0) == ggml_types.Q2_0
    assert ggml.gguf_get_tensor_size(file, 0) == stored.nbytes
    ggml.gguf_free(file)
