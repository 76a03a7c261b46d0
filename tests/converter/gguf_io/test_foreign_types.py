"""Other programs' tensor types: read as their specification says, told apart by sizes alone, or refused by name."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import foreign_gguf as files
from tritgguf.converter.core import kernels
from tritgguf.converter.errors import SourceError, TensorError, TritggufError, UnsupportedError
from tritgguf.converter.gguf_io.foreign_type import ForeignTensor, foreign_types
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.quant.grids import find_grid

SHAPES = ((5, 512), (3, 256), (16, 1024))
NAME = "blk.0.attn_q.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return files.base_file(tmp_path / "base.gguf")


def opened(base: Path, tensors: dict[str, files.Stored], **options: object) -> dict[str, object]:
    out = files.add_tensors(base, base.with_name("foreign.gguf"), tensors, **options)  # type: ignore[arg-type]
    return dict(read_gguf(out).tensors)


@pytest.mark.parametrize("how", ["numpy", "compiled"])
@pytest.mark.parametrize("name", files.KINDS)
def test_values_are_those_of_the_specification(name: str, how: str, base: Path, monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, how)
    kind, stored, expected = files.KINDS[name], {}, {}
    for number, shape in enumerate(SHAPES):
        codes, scales = files.coded(kind, shape, number)
        stored[f"t{number}"] = kind.tensor(codes, scales)
        expected[f"t{number}"] = files.weights(codes, scales)
    tensors = opened(base, stored)
    for tensor_name, values in expected.items():
        tensor = tensors[tensor_name]
        assert isinstance(tensor, ForeignTensor)
        assert (tensor.dtype, tensor.shape) == (name.split()[0], values.shape)
        assert tensor.n_bytes == len(stored[tensor_name][2])
        np.testing.assert_array_equal(tensor.read(slice(None)), values)
        np.testing.assert_array_equal(tensor.read(slice(1, 3)), values[1:3])
        order = np.array([2, 0, 2], np.int64)
        np.testing.assert_array_equal(tensor.read(order), values[order])
        grid = find_grid(tensor)
        assert grid is not None
        assert (grid.levels, grid.fp16_error) == (3, 0.0)
        assert grid.group == (kind.group or values.shape[1])


def test_each_type_is_in_the_writer_or_refused() -> None:
    readable = {kind.name for kind in foreign_types() if kind.layout is not None}
    assert readable == {name.split()[0] for name in files.KINDS}


def _moved(pack: Callable[..., bytes], size: int, move: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """Return a writer of the same blocks with their bytes changed by `move`."""

    def changed(codes: files.Row, scales: list[float]) -> bytes:
        stored = pack(codes, scales)
        head = len(stored) % size
        return stored[:head] + b"".join(move(stored[at : at + size]) for at in range(head, len(stored), size))

    return changed


def _pairs_reversed(stored: bytes) -> bytes:
    return bytes((b & 3) << 6 | (b & 12) << 2 | (b & 48) >> 2 | b >> 6 for b in stored)


def _nibbles_swapped(stored: bytes) -> bytes:
    return bytes((b & 15) << 4 | b >> 4 for b in stored)


def _bits_reversed(stored: bytes) -> bytes:
    return bytes(int(f"{b:08b}"[::-1], 2) for b in stored)


def _strided(codes: files.Row, scales: list[float]) -> bytes:
    """STQ1_0 with four neighbours in a group."""
    order = [64 * (g // 16) + g % 16 + 16 * p for g in range(64) for p in range(4)]
    turned = [0] * len(codes)
    for block in range(0, len(codes), 256):
        for place, source in enumerate(order):
            turned[block + source] = codes[block + place]
    return files.stq1_0(turned, scales)


G128, STQ = files.q2_0_g128, files.stq1_0
MUTANTS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "the scale of 128 behind the codes": ("Q2_0-g128", _moved(G128, 34, lambda b: b[2:] + b[:2])),
    "128 with the highest bits first": ("Q2_0-g128", _moved(G128, 34, lambda b: b[:2] + _pairs_reversed(b[2:]))),
    "the halves of 128 exchanged": ("PQ2_0", _moved(G128, 34, lambda b: b[:2] + b[18:] + b[2:18])),
    "the scale of PTQ1_0 before the trits": ("PTQ1_0", _moved(files.ptq1_0, 28, lambda b: b[26:] + b[:26])),
    "PTQ1_0's sections exchanged": ("PTQ1_0", _moved(files.ptq1_0, 28, lambda b: b[8:24] + b[:8] + b[24:])),
    "the scale of STQ1_0 before the codes": ("STQ1_0", _moved(STQ, 42, lambda b: b[40:] + b[:40])),
    "STQ1_0 with the high nibble first": ("STQ1_0", _moved(STQ, 42, lambda b: _nibbles_swapped(b[:32]) + b[32:])),
    "STQ1_0's signs from the highest bit": (
        "STQ1_0", _moved(STQ, 42, lambda b: b[:32] + _bits_reversed(b[32:40]) + b[40:]),
    ),
    "I2_S with the lowest bits first": ("I2_S", _moved(files.i2_s, 32, _pairs_reversed)),
    "I2_S in halves, as on ARM": ("I2_S", lambda codes, scales: b"".join(
        bytes(sum((codes[at + 16 * k + p] + 1) << 6 - 2 * k for k in range(4)) for p in range(16))
        for at in range(0, len(codes), 64)
    )),
    "IQ1_BN's last byte first": ("IQ1_BN", _moved(files.iq1_bn, 13, lambda b: b[12:] + b[:12])),
    "IQ2_BN with the highest bits first": ("IQ2_BN", _moved(files.iq2_bn, 16, _pairs_reversed)),
    "IQ2_BN with neighbours in a byte": ("IQ2_BN", lambda codes, scales: struct.pack("<f", scales[0]) + b"".join(
        bytes(sum((codes[at + k] + 1) << 2 * k for k in range(4)) for _ in (0,)) for at in range(0, len(codes), 4)
    )),
}  # fmt: skip
MUTANTS["STQ1_0 without stride"] = ("STQ1_0", _strided)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_another_convention_gives_other_values(mutant: str, base: Path) -> None:
    name, pack = MUTANTS[mutant]
    kind = files.KINDS[name]
    codes, scales = files.coded(kind, (4, 512), 7)
    if mutant == "STQ1_0 without stride":  # it stores one zero in each four neighbours
        codes = np.ascontiguousarray(codes.reshape(-1, 4, 16).swapaxes(1, 2)).reshape(codes.shape)
    other = files.Kind(kind.number, pack, kind.group, kind.tensor_scale)
    tensor = opened(base, {NAME: other.tensor(codes, scales)})[NAME]
    assert isinstance(tensor, ForeignTensor)
    try:
        found = tensor.read(slice(None))
    except TensorError:
        return
    assert not np.array_equal(found, files.weights(codes, scales))


@pytest.mark.parametrize("alignment", [32, 64, 1024])
@pytest.mark.parametrize(
    ("pack", "group", "dtype"),
    [(files.q2_0_g64, 64, "Q2_0"), (files.q2_0_g128, 128, "Q2_0-g128"), (files.stq1_0, 256, "STQ1_0")],
)
def test_type_42_is_told_apart_by_sizes(pack, group: int, dtype: str, alignment: int, base: Path) -> None:
    """Also where a tensor alone could be of another type, and where the file's last tensor isn't padded."""
    kind = files.Kind(42, pack, group, one_zero_in_four=True)
    shapes = {"small": (1, 256), "a": (33, 512), "b": (9, 1280)}
    matrices = {name: files.coded(kind, shape, 3) for name, shape in shapes.items()}
    stored = {name: kind.tensor(*matrix) for name, matrix in matrices.items()}
    keys = {"general.alignment": alignment} if alignment != 32 else {}
    tensors = opened(base, stored, alignment=alignment, keys=keys)
    for name, matrix in matrices.items():
        assert tensors[name].dtype == dtype  # type: ignore[attr-defined]
        np.testing.assert_array_equal(tensors[name].read(slice(None)), files.weights(*matrix))  # type: ignore[attr-defined]


@pytest.mark.parametrize("pack", [files.q2_0_g64, files.q2_0_g128, files.stq1_0])
def test_the_last_tensor_of_type_42_may_lack_padding(pack, tmp_path: Path) -> None:
    kind = files.Kind(42, pack, 256, one_zero_in_four=True)
    codes, scales = files.coded(kind, (9, 256), 3)
    group = {files.q2_0_g64: 64, files.q2_0_g128: 128}.get(pack, 256)
    stored = kind.tensor(codes, np.repeat(scales, 256 // group, axis=1))
    bare = files.add_tensors(_without_tensors(tmp_path), tmp_path / "whole.gguf", {NAME: stored})
    data = bare.read_bytes()
    cut = tmp_path / "unpadded.gguf"
    cut.write_bytes(data[: len(data) - -len(stored[2]) % 32])
    for path in (bare, cut):
        np.testing.assert_array_equal(read_gguf(path).tensors[NAME].read(slice(None)), files.weights(codes, scales))
    cut.write_bytes(data[: len(data) - -len(stored[2]) % 32 - 1])
    with pytest.raises(SourceError, match="truncated"):
        read_gguf(cut)


def _without_tensors(folder: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(folder / "bare.gguf", "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "bare.gguf"


def test_a_mixture_of_layouts_is_refused(base: Path) -> None:
    stored = {
        "a": files.KINDS["Q2_0-g128"].tensor(*files.coded(files.KINDS["Q2_0-g128"], (16, 512), 0)),
        "b": files.KINDS["STQ1_0"].tensor(*files.coded(files.KINDS["STQ1_0"], (16, 512), 0)),
    }
    with pytest.raises(
        UnsupportedError, match=r"type 42 is Q2_0 \(18 bytes.*, but the file has tensors of another size"
    ):
        opened(base, stored)


def test_an_undecidable_file_is_refused(base: Path) -> None:
    """128 values take 36 or 34 bytes, both padded to 64."""
    kind = files.KINDS["Q2_0-g128"]
    with pytest.raises(UnsupportedError, match=r"type 42 .* too small to tell which"):
        opened(base, {"a": kind.tensor(*files.coded(kind, (1, 128), 0))})


@pytest.mark.parametrize("n_bytes", [0, 1, 16 * 512, 16 * 512 // 64 * 18 - 32, 16 * 512 // 64 * 18 + 32])
def test_type_42_of_another_size_is_refused(n_bytes: int, base: Path) -> None:
    """A program unknown here has 8-bit floats of that number."""
    with pytest.raises(UnsupportedError, match=r"type 42 .* of another size"):
        opened(base, {"a": ((16, 512), 42, bytes(n_bytes)), "b": ((4,), 0, bytes(16))})


@pytest.mark.parametrize(
    ("number", "n_bytes", "words"),
    [
        (38, 256 * 64, ("TL1", "bitnet.cpp", "kernel_config.ini", "I2_S file")),
        (39, 256 * 64, ("TL2", "bitnet.cpp", "kernel_config.ini", "I2_S file")),
        (335, 256 * 64 + 1024, ("IQ2_BN_R4", "ik_llama.cpp", "IQ2_BN")),
        (36, 256 * 256 // 32 * 18, ("type 36", "I2_S (32 bytes per 128 values)", "of another size")),
        (143, 256 * 64, ("type 143", "PTQ1_0", "of another size")),
        (99, 256 * 64, ("type 99", "unknown here")),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(number: int, n_bytes: int, words: tuple[str, ...], base: Path) -> None:
    with pytest.raises(UnsupportedError) as refused:
        opened(base, {NAME: ((256, 256), number, bytes(n_bytes))})
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)


def test_llama_cpp_s_mxfp4_keeps_its_number(base: Path) -> None:
    tensors = opened(base, {NAME: ((256, 256), 39, bytes(256 * 256 // 32 * 17))})
    assert tensors[NAME].dtype == "MXFP4"  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["numpy", "compiled"])
@pytest.mark.parametrize("name", ["Q2_0-g128", "PQ2_0"])
def test_a_single_code_of_two_makes_four_levels(name: str, how: str, base: Path, monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, how)
    kind = files.KINDS[name]
    codes, scales = files.coded(kind, (700, 256), 0)
    codes[613, 130] = 2
    tensor = opened(base, {NAME: kind.tensor(codes, scales)})[NAME]
    assert isinstance(tensor, ForeignTensor)
    np.testing.assert_array_equal(tensor.read(slice(None)), files.weights(codes, scales))
    grid = find_grid(tensor)
    assert grid is not None
    assert (grid.levels, grid.group) == (4, 128)


@pytest.mark.parametrize("name", ["PQ2_0", "PTQ1_0", "IQ1_BN"])
def test_a_scale_that_is_not_finite_is_an_error(name: str, base: Path) -> None:
    kind = files.KINDS[name]
    codes, scales = files.coded(kind, (8, 256), 0)
    scales[5, 0] = np.inf
    tensor = opened(base, {NAME: kind.tensor(codes, scales)})[NAME]
    assert isinstance(tensor, ForeignTensor)
    message = rf"foreign\.gguf: tensor {re.escape(NAME)} has 1 NaN or Inf scales"
    with pytest.raises(TensorError, match=message):
        tensor.read(slice(None))
    with pytest.raises(TensorError, match=message):
        find_grid(tensor)


@pytest.mark.parametrize("name", ["I2_S", "IQ2_BN"])
def test_code_3_is_damage(name: str, base: Path) -> None:
    kind = files.KINDS[name]
    codes, scales = files.coded(kind, (8, 256), 0)
    codes[5, 77] = 2
    tensor = opened(base, {NAME: kind.tensor(codes, scales)})[NAME]
    with pytest.raises(TensorError, match=rf"foreign\.gguf: tensor {re.escape(NAME)} holds the invalid code 3"):
        tensor.read(slice(None))  # type: ignore[attr-defined]


def test_the_scale_of_i2_s_is_behind_the_rows_and_junk_follows(base: Path) -> None:
    kind = files.KINDS["I2_S"]
    codes, scales = files.coded(kind, (8, 256), 0)
    shape, number, data = kind.tensor(codes, scales)
    expected = files.weights(codes, scales)
    for junk in (bytes(28), b"\xff" * 28):
        tensor = opened(base, {NAME: (shape, number, data[:-28] + junk)})[NAME]
        np.testing.assert_array_equal(tensor.read(slice(None)), expected)  # type: ignore[attr-defined]
    turned = data[:-32] + data[-28:] + data[-32:-28]
    try:
        found = opened(base, {NAME: (shape, number, turned)})[NAME].read(slice(None))  # type: ignore[attr-defined]
    except TritggufError:
        return
    assert not np.array_equal(found, expected)
