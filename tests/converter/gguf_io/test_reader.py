"""GGUF files as sources of tensors: values as ggml has them, metadata that survives, damage told in one line."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tests.oracles import libggml
from tritgguf.converter.errors import EngineError, SourceError, TensorError, TritggufError, UnsupportedError
from tritgguf.converter.gguf_io.header import header_bytes
from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf
from tritgguf.runtime.engine.gguf_header import read_header

FLOATS = ("F32", "F16", "BF16")
QUANTIZED = (
    "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip


def stored_rows(kind: GGMLQuantizationType, n_rows: int, n_columns: int) -> np.ndarray:
    """Rows of seeded bytes, each below 64: so every fp16 scale, wherever the type has it, is finite."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(kind.value)
    return rng.integers(0, 64, (n_rows, n_columns // block * block_bytes), dtype=np.uint8)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]], **keys: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        writer.add_string(key.replace("__", "."), value)
    for name, (stored, kind) in tensors.items():
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file with a Q4_0 and an F32 tensor."""
    kind = GGMLQuantizationType.Q4_0
    tensors = {
        "blk.0.attn_q.weight": (stored_rows(kind, 8, 64), kind),
        "blk.0.attn_norm.weight": (np.arange(64, dtype=np.float32), GGMLQuantizationType.F32),
    }
    return write(tmp_path / "small.gguf", tensors, general__name="small")


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_values_are_those_of_ggml(type_name: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[type_name]
    stored = stored_rows(kind, 24, 512)
    tensor = read_gguf(write(tmp_path / "out.gguf", {"x": (stored, kind)})).tensors["x"]
    assert (tensor.dtype, tensor.shape, tensor.ggml_type) == (type_name, (24, 512), kind)
    expected = libggml.dequantize(stored, kind)
    whole = tensor.read(slice(None))
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, gguf.quants.dequantize(stored, kind))
    np.testing.assert_allclose(whole, expected, rtol=3e-7, atol=0)  # gguf multiplies in another order for some types
    if type_name in ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"):
        np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(tensor.read(slice(5, 9)), whole[5:9])
    order = np.array([23, 0, 7, 7], np.int64)
    np.testing.assert_array_equal(tensor.read(order), whole[order])
    np.testing.assert_array_equal(tensor.read_bytes(order), stored[order])


@pytest.mark.parametrize("type_name", FLOATS)
def test_floats_come_back(type_name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(-100, 100, (6, 40)).astype(np.float32) / 64
    stored = gguf.quants.quantize(values, GGMLQuantizationType[type_name])
    path = write(tmp_path / "out.gguf", {"x": (stored, GGMLQuantizationType[type_name])})
    np.testing.assert_array_equal(read_gguf(path).tensors["x"].read(slice(1, 4)), values[1:4])


def test_one_and_three_dimensions(tmp_path: Path) -> None:
    experts = np.random.default_rng(4).standard_normal((3, 4, 32), dtype=np.float32)
    norm = np.arange(10, dtype=np.float32)
    kind = GGMLQuantizationType.F32
    tensors = read_gguf(write(tmp_path / "out.gguf", {"experts": (experts, kind), "norm": (norm, kind)})).tensors
    assert tensors["experts"].shape == (3, 4, 32)
    np.testing.assert_array_equal(tensors["experts"].read(slice(5, 9)), experts.reshape(12, 32)[5:9])
    assert tensors["norm"].shape == (10,)
    np.testing.assert_array_equal(tensors["norm"].read(slice(0, 1)), norm[None])


def test_reading_rows_touches_only_their_bytes(tmp_path: Path) -> None:
    """A NaN elsewhere in the tensor isn't seen, and is an error where it lies."""
    values = np.ones((4, 32), np.float32)
    values[2, 7] = np.nan
    tensor = read_gguf(write(tmp_path / "out.gguf", {"x": (values, GGMLQuantizationType.F32)})).tensors["x"]
    assert (tensor.read(slice(0, 2)) == 1).all()
    with pytest.raises(TensorError, match=r"out\.gguf: tensor x has 1 NaN or Inf"):
        tensor.read(slice(2, 3))


def test_metadata_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "first.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.uint8", 200)
    writer.add_int8("a.int8", -3)
    writer.add_uint16("a.uint16", 60000)
    writer.add_int16("a.int16", -30000)
    writer.add_uint32("a.uint32", 2**32 - 1)
    writer.add_int32("a.int32", -(2**31))
    writer.add_uint64("a.uint64", 2**64 - 1)
    writer.add_int64("a.int64", -(2**63))
    writer.add_float32("a.float32", 1e-5)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße\n")
    writer.add_array("a.floats", [0.5, -1.0])
    writer.add_array("a.texts", ["x", "ü", ""])
    writer.add_key_value("a.bytes", [b"\xff\xfe", b"ok"], GGUFValueType.ARRAY, GGUFValueType.STRING)
    writer.add_key_value("a.bools", [True, False], GGUFValueType.ARRAY, GGUFValueType.BOOL)
    writer.add_token_types([1, 3, 6])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = read_gguf(path)
    assert (file.architecture, file.value("a.string"), file.value("nothing", 7)) == ("llama", "Grüße\n", 7)
    assert file.value("a.bytes") == [b"\xff\xfe", b"ok"]
    assert file.value("a.float32") == np.float32(1e-5)
    again = tmp_path / "again.gguf"
    again.write_bytes(header_bytes(file.metadata, ()))
    assert path.read_bytes().rstrip(b"\0") == again.read_bytes().rstrip(b"\0")
    fields = gguf.GGUFReader(path).fields
    for key, value in file.metadata.items():
        if key != "a.bytes":
            assert fields[key].contents() == value.data, key


def test_an_odd_alignment(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "out.gguf", "llama")
    writer.add_custom_alignment(128)
    for number in range(3):
        writer.add_tensor(f"t{number}", np.full((3, 5), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for number, tensor in enumerate(read_gguf(tmp_path / "out.gguf").tensors.values()):
        assert (tensor.read(slice(None)) == number).all()


def patched(blob: bytes, old: bytes, new: bytes) -> bytes:
    assert blob.count(old) == 1
    return blob.replace(old, new)


NAME = b"blk.0.attn_q.weight"
DIMENSIONS = NAME + struct.pack("<IQQIQ", 2, 64, 8, 2, 0)
TEXT_KEY = b"general.name" + struct.pack("<IQ", GGUFValueType.STRING, 5) + b"small"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _blob: b"", "not a GGUF file"),
    "something else": (lambda blob: b"PK\3\4" + blob[4:], "starts with b'PK.*expected b'GGUF'"),
    "four bytes": (lambda blob: blob[:4], "damaged or cut off"),
    "cut in the header": (lambda blob: blob[:90], "damaged or cut off"),
    "cut in the weights": (
        lambda blob: blob[:-300],
        "truncated, its header promises .* file again",
    ),
    "cut before the weights": (lambda blob: blob[: blob.index(NAME) + 100], "damaged or cut off|truncated"),
    "big-endian": (
        lambda blob: blob[:4] + struct.pack(">I", 3) + blob[8:],
        "is a big-endian GGUF file; expected",
    ),
    "version 1": (lambda blob: blob[:4] + struct.pack("<I", 1) + blob[8:], "is of GGUF version 1; expected"),
    "countless tensors": (lambda blob: blob[:8] + struct.pack("<Q", 2**62) + blob[16:], "damaged or cut off"),
    "countless keys": (lambda blob: blob[:16] + struct.pack("<Q", 2**62) + blob[24:], "damaged or cut off"),
    "endless string": (
        lambda blob: patched(blob, TEXT_KEY, TEXT_KEY[:-13] + struct.pack("<Q", 2**63) + b"small"),
        "damaged or cut off",
    ),
    "endless array": (
        lambda blob: patched(
            blob, TEXT_KEY, b"general.name" + struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.UINT8, 2**60)
        ),
        "the file ends inside it",
    ),
    "endless strings": (
        lambda blob: patched(
            blob, TEXT_KEY, b"general.name" + struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, 2**60)
        ),
        "damaged or cut off",
    ),
    "value of no type": (
        lambda blob: patched(blob, TEXT_KEY, b"general.name" + struct.pack("<IQ", 77, 5) + b"small"),
        "a value has type 77",
    ),
    "tensor of no type": (
        lambda blob: patched(blob, DIMENSIONS, NAME + struct.pack("<IQQIQ", 2, 64, 8, 777, 0)),
        "tensor blk.0.attn_q.weight has type 777",
    ),
    "broken row": (
        lambda blob: patched(blob, DIMENSIONS, NAME + struct.pack("<IQQIQ", 2, 65, 8, 2, 0)),
        "doesn't fit Q4_0",
    ),
    "no rows": (lambda blob: patched(blob, DIMENSIONS, NAME + struct.pack("<IQQIQ", 2, 64, 0, 2, 0)), "doesn't fit"),
    "immense": (
        lambda blob: patched(blob, DIMENSIONS, NAME + struct.pack("<IQQIQ", 2, 2**63, 2**63, 2, 0)),
        "overlaps|truncated",
    ),
    "seven dimensions": (
        lambda blob: patched(blob, DIMENSIONS, NAME + struct.pack("<IQQIQ", 7, 64, 8, 2, 0)),
        "has 7 dimensions",
    ),
    "overlap": (
        lambda blob: patched(blob, DIMENSIONS, NAME + struct.pack("<IQQIQ", 2, 64, 16, 2, 0)),
        "overlaps blk.0.attn_q.weight",
    ),
    "name of two lines": (lambda blob: patched(blob, NAME, NAME.replace(b".0.", b"\n0.")), "can't be printed"),
    "key of two lines": (lambda blob: patched(blob, b"general.name", b"general\nname"), "can't be printed"),
    "name of no letters": (
        lambda blob: patched(blob, NAME, NAME.replace(b".0.", b"\xff0.")),
        "name .* isn't UTF-8",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_file_is_told_in_one_line(name: str, small: Path) -> None:
    damage, expected = DAMAGE[name]
    small.write_bytes(damage(small.read_bytes()))
    with pytest.raises((SourceError, UnsupportedError), match=expected) as caught:
        read_gguf(small)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "empty", "something else", "four bytes", "cut in the header", "big-endian", "version 1", "countless keys",
        "endless string", "endless array", "endless strings", "value of no type", "key of two lines",
    ],
)  # fmt: skip
def test_the_runtime_has_the_same_words(name: str, small: Path) -> None:
    small.write_bytes(DAMAGE[name][0](small.read_bytes()))
    with pytest.raises((SourceError, UnsupportedError)) as converter:
        read_gguf(small)
    with pytest.raises(EngineError) as runtime:
        read_header(small)
    assert str(runtime.value) == str(converter.value)


def test_the_runtime_reads_keys_before_tensors_of_types_unknown_here(small: Path) -> None:
    """llama.cpp may know them; and before a conversion has written the tensors' data."""
    blob, end = small.read_bytes(), read_header(small).values_end
    small.write_bytes(DAMAGE["tensor of no type"][0](blob)[: end + 60])
    header = read_header(small)
    assert (header.values["general.name"], header.values_end) == ("small", end)
    assert blob[end:].startswith(struct.pack("<Q", len(NAME)) + NAME)


def test_lengths_beyond_the_file_in_each_string_of_an_array(small: Path) -> None:
    """A length is 64 bits: what comes next may lie beyond all that an address can be."""
    words = (b"first", b"second", b"third")
    start = b"general.name" + struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(words))
    blob = small.read_bytes()
    for place in range(len(words)):
        for length in (10**6, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
            lengths = [length if number == place else len(word) for number, word in enumerate(words)]
            strings = b"".join(struct.pack("<Q", n) + word for n, word in zip(lengths, words, strict=True))
            small.write_bytes(patched(blob, TEXT_KEY, start + strings))
            with pytest.raises(SourceError, match=r"cut off \(the file ends inside it\)"):
                read_gguf(small)
            with pytest.raises(EngineError, match=r"cut off \(the file ends inside it\)"):
                read_header(small)


def test_a_key_or_tensor_twice(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.F32
    values = np.zeros(4, np.float32)
    path = write(
        tmp_path / "out.gguf", {"tensor.a": (values, kind), "tensor.b": (values, kind)}, key__a="1", key__b="2"
    )
    blob = path.read_bytes()
    for what in ("tensor", "key"):
        path.write_bytes(patched(blob, f"{what}.b".encode(), f"{what}.a".encode()))
        with pytest.raises(SourceError, match=f"{what} '{what}.a' appears twice"):
            read_gguf(path)


def test_random_damage_never_escapes(small: Path) -> None:
    rng = np.random.default_rng(11)
    blob = small.read_bytes()
    lines = []
    for trial in range(400):
        damaged = bytearray(blob)
        for place in rng.integers(0, blob.index(NAME) + 120, rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        small.write_bytes(damaged[: rng.integers(1, len(blob) + 1)] if trial % 3 == 0 else damaged)
        try:
            for tensor in read_gguf(small).tensors.values():
                tensor.read(slice(None))
        except TritggufError as error:
            lines.append(str(error))
    assert len(lines) > 100
    assert not any("\n" in line for line in lines)


def test_types_that_gguf_cannot_dequantize(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_K
    tensors = read_gguf(write(tmp_path / "out.gguf", {"x": (stored_rows(kind, 2, 256), kind)})).tensors
    with pytest.raises(UnsupportedError, match="tensor x is Q8_K, which gguf's Python package can't dequantize"):
        tensors["x"].read(slice(None))


def test_what_is_no_file(tmp_path: Path, small: Path) -> None:
    with pytest.raises(SourceError, match="is a folder, expected a GGUF file"):
        read_gguf(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        read_gguf(tmp_path / "none")
    assert [is_gguf(path) for path in (small, tmp_path, tmp_path / "none")] == [True, False, False]
    assert read_gguf(small).file_bytes == small.stat().st_size
