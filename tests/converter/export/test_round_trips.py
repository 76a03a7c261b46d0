"""What quantize writes is what the packings read: codes and scales come back equal, whatever the matrix."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import paths
from tests.packed_checkpoints import floats, write_tensors
from tritgguf.converter import TensorError, quantize, unpack_base3
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_layout import Shard
from tritgguf.converter.checkpoint.safetensors_reader import read_file, read_tensors
from tritgguf.converter.core.tensors import CodedRows, CodedTensor, SourceTensor
from tritgguf.converter.export.scheme import scheme_named
from tritgguf.converter.quant.trit_packing import pack_trits, unpack_trits

NAME = "model.layers.0.mlp.up_proj.weight"
SCHEMES = ("absmean-g64", "bitnet", "uniform-d1", "uniform-d2", "uniform-d3")
Floats = NDArray[np.float32]


def source_of(values: Floats, folder: Path) -> SourceTensor:
    write_tensors(folder, {NAME: floats(values, "F32")})
    return read_tensors(folder)[NAME]


def packed(scheme_name: str, values: Floats, folder: Path) -> tuple[CodedRows, CodedTensor]:
    """Code and pack one matrix by its chunks; return what was coded and what is read back."""
    scheme, source = scheme_named(scheme_name), source_of(values, folder)
    coder = scheme.coder(source, None, 1)
    shard = Shard("packed.safetensors", scheme.packer.entries(NAME, values.shape))
    body = np.full(shard.file_bytes, 0xEE, np.uint8)
    body[: len(shard.header)] = np.frombuffer(shard.header, np.uint8)
    for chunk in scheme.packer.chunks(values.shape):
        rows = source.read(scheme.packer.rows(values.shape, chunk))
        for entry, offset, data in scheme.packer.encode(NAME, values.shape, chunk, rows, coder)[0]:
            start = shard.offsets[entry] + offset
            body[start : start + data.nbytes] = data.reshape(-1)
    (folder / shard.file_name).write_bytes(body.tobytes())
    quantization = {"quantization_config": dict(scheme.config)}
    _, tensors = read_packing(quantization, read_file(folder / shard.file_name), linear=())
    found = tensors[NAME].fitted(values.shape)
    assert isinstance(found, CodedTensor)
    return coder.quantize(values), found


@st.composite
def matrices(draw: st.DrawFn) -> Floats:
    """Matrices of many sizes: heavy tails, rows of zeros, all zeros, tiny and large values."""
    rows, groups = 4 * draw(st.integers(1, 40)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_t(3, (rows, 16 * groups)) * 10.0 ** draw(st.integers(-6, 3))
    values[rng.random(rows) < draw(st.sampled_from([0, 0, 0.3, 1]))] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=25, deadline=None)
@given(values=matrices())
def test_codes_and_scales_come_back(scheme: str, values: Floats) -> None:
    with tempfile.TemporaryDirectory() as folder:
        coded, found = packed(scheme, values, Path(folder))
        read = found.read_codes(slice(None))
        n_columns = values.shape[1]
        np.testing.assert_array_equal(read.codes, coded.codes[:, :n_columns])
        np.testing.assert_array_equal(read.dequantize(), coded.dequantize()[:, :n_columns])
        rows = np.random.default_rng(7).permutation(len(values))[:5]
        np.testing.assert_array_equal(found.read(rows), coded.dequantize()[rows, :n_columns])
        scales = np.repeat(found.scales(slice(None)), n_columns // found.scales(slice(None)).shape[1], axis=1)
        np.testing.assert_array_equal(found.read_codes(slice(None)).codes * scales, found.read(slice(None)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_and_scales_come_back_from_several_chunks(scheme: str, tmp_path: Path) -> None:
    """Rows of 25 groups: a block of trits ends within a row, so that chunks must be cut where both end."""
    values = np.random.default_rng(41).standard_normal((6400, 400)).astype(np.float32)
    assert len(list(scheme_named(scheme).packer.chunks(values.shape))) > 1
    coded, found = packed(scheme, values, tmp_path)
    np.testing.assert_array_equal(found.read(slice(None)), coded.dequantize()[:, :400])


@settings(max_examples=25, deadline=None)
@given(values=matrices())
def test_base3_bytes_are_those_of_the_plain_rule(values: Floats) -> None:
    """Groups of 64, scale mean|w|, code clip(round(w / scale), -1, 1); byte = v0 + 3 v1 + 9 v2 + 27 v3."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 64)))
    means = np.abs(padded.reshape(len(padded), -1, 64)).mean(axis=2, dtype=np.float64)
    with tempfile.TemporaryDirectory() as folder:
        packed("absmean-g64", values, Path(folder))
        stored = read_file(Path(folder) / "packed.safetensors")
        entry, entry_scales = stored[NAME], stored[f"{NAME}.scales"]
        assert (entry.dtype, entry.shape) == ("U8", (len(values), padded.shape[1] // 4))
        assert (entry_scales.dtype, entry_scales.shape) == ("F32", (len(values), padded.shape[1] // 64))
        found = entry_scales.read(slice(None))
        np.testing.assert_allclose(found, means, rtol=1e-6)
        rows = []
        for row, row_scales in zip(padded, found, strict=True):
            codes = []
            for start in range(0, len(row), 64):
                scale = row_scales[start // 64]
                codes += [0 if scale == 0 else max(-1, min(1, round(w / scale))) for w in row[start : start + 64]]
            fours = zip(*([code + 1 for code in codes[place::4]] for place in range(4)), strict=True)
            rows.append([a + 3 * b + 9 * c + 27 * d for a, b, c, d in fours])
        np.testing.assert_array_equal(entry.data.reshape(entry.shape), np.array(rows, np.uint8))
        weights = unpack_base3(entry.data.reshape(entry.shape), found)
        digits = np.array([[int(byte) // 3**place % 3 - 1 for byte in row for place in range(4)] for row in rows])
        np.testing.assert_array_equal(weights, digits.astype(np.float32) * np.repeat(found, 64, axis=1))


def test_the_unpack_of_the_docs_is_the_public_one() -> None:
    text = (paths.DOCS / "formats.md").read_text()
    (code,) = re.findall(r"```python\n(def unpack.*?)```", text, re.S)
    assert len(code.splitlines()) <= 10
    names: dict[str, Any] = {"np": np}
    exec(code, names)
    packed = np.random.default_rng(1).integers(0, 81, (6, 32), dtype=np.uint8)
    scales = np.random.default_rng(2).random((6, 2), dtype=np.float32)
    np.testing.assert_array_equal(names["unpack"](packed, scales), unpack_base3(packed, scales))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_packed_trits_are_numbers_in_base_3(n_blocks: int, seed: int) -> None:
    digits = np.random.default_rng(seed).integers(0, 3, n_blocks * 136, dtype=np.uint8)
    stored = pack_trits(digits)
    assert stored.shape == (n_blocks, 27)
    for block, trits in zip(stored, digits.reshape(n_blocks, 8, 17), strict=True):
        numbers = [sum(int(trit) * 3**place for place, trit in enumerate(part)) for part in trits]
        assert int.from_bytes(block.tobytes(), "little") == sum(n << 27 * i for i, n in enumerate(numbers))
    np.testing.assert_array_equal(unpack_trits(stored), digits)


def groups_of(values: Floats) -> Iterator[NDArray[np.float64]]:
    yield from values.astype(np.float64).reshape(-1, 16)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_the_uniform_codec_follows_its_rule(digits: int, tmp_path: Path) -> None:
    """Scales from a codebook of 27 log-spaced entries, the last the largest of the groups' best scales by rank."""
    values = np.random.default_rng(31).standard_t(4, (64, 128)).astype(np.float32)
    coded, found = packed(f"uniform-d{digits}", values, tmp_path)
    k = (3**digits - 1) // 2
    assert coded.codes.min() == -k
    assert coded.codes.max() == k

    def error(group: NDArray[np.float64], scale: float) -> float:
        step = scale / k
        return float(((np.clip(np.round(group / step), -k, k) * step - group) ** 2).sum())

    ranked = [np.sort(np.abs(group))[[10, 12, 14, 15]] for group in groups_of(values)]
    errors = [
        [error(group, scale) for scale in scales] for group, scales in zip(groups_of(values), ranked, strict=True)
    ]
    best = [scales[np.argmin(found)] for scales, found in zip(ranked, errors, strict=True)]
    book = read_file(tmp_path / "packed.safetensors")[f"{NAME}.steps"].read(slice(None)).reshape(-1) * k
    assert len(book) == 27
    assert book[-1] == pytest.approx(max(best), rel=1e-6)
    np.testing.assert_allclose(np.diff(np.log(book)), np.log(book[-1] / book[0]) / 26, rtol=1e-4)
    for number, group in enumerate(groups_of(values)):
        scale = coded.scales.reshape(-1)[number] * k
        # Candidates may tie; the better of the entries around one of the best is taken.
        tied = ranked[number][np.array(errors[number]) <= min(errors[number]) * (1 + 1e-5)]
        above = [min(int(np.searchsorted(book, wanted * (1 - 1e-6))), 26) for wanted in tied]
        around = [min(error(group, book[index]), error(group, book[max(index - 1, 0)])) for index in above]
        assert any(error(group, scale) == pytest.approx(expected, rel=1e-4) for expected in around)
        codes = coded.codes.reshape(-1, 16)[number]
        np.testing.assert_array_equal(codes, np.clip(np.round(group / (scale / k)), -k, k))
    assert found.levels == 3**digits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored | {f"{NAME}.shape": ("I64", (2,), np.array([64, 144]).tobytes())}, "doesn't hold"),
        (lambda stored: {k: v for k, v in stored.items() if not k.endswith(".steps")}, "found nothing"),
        (
            lambda stored: (
                stored | {f"{NAME}.trits": (*stored[f"{NAME}.trits"][:2], b"\xff" * len(stored[f"{NAME}.trits"][2]))}
            ),
            "3\\^17",
        ),
        (
            lambda stored: (
                stored | {f"{NAME}.steps": floats(np.linspace(1, 0.1, 27, dtype=np.float32), "F32")}
            ),
            "in rising order",
        ),
    ],
)  # fmt: skip
def test_damaged_trits_are_refused(change, message: str, tmp_path: Path) -> None:
    packed("uniform-d1", np.random.default_rng(3).standard_normal((64, 128)).astype(np.float32), tmp_path)
    tensors = read_file(tmp_path / "packed.safetensors")
    stored = {name: (t.dtype, t.shape, t.data.tobytes()) for name, t in tensors.items()}
    write_tensors(tmp_path, change(stored))
    config = {"quantization_config": dict(scheme_named("uniform-d1").config)}
    with pytest.raises(Exception, match=message) as stopped:
        read_packing(config, read_tensors(tmp_path), linear=())[1][NAME].read(slice(None))
    assert type(stopped.value).__module__ == "tritgguf.converter.errors"


def test_a_folder_can_go_from_each_format_to_each(model, tmp_path: Path) -> None:
    """What is ternary already keeps its codes; what the next format can't hold is refused."""
    first = quantize(model("llama-gqa"), tmp_path / "bitnet", "bitnet").out
    second = quantize(first, tmp_path / "absmean", "absmean-g64").out
    third = quantize(second, tmp_path / "again", "bitnet").out
    tensors = [open_checkpoint(folder, linear=()).tensors for folder in (first, second, third)]
    for name in tensors[0]:
        if name.endswith("_proj.weight"):
            values = [found[name].read(slice(None)) for found in tensors]
            np.testing.assert_array_equal(values[0], values[1])
            np.testing.assert_allclose(values[2], values[0], rtol=2e-7)
    grouped = quantize(model("llama-gqa"), tmp_path / "grouped", "absmean-g64").out
    with pytest.raises(TensorError, match=r"per 64 columns, which bitnet can't hold.*--allow-lossy"):
        quantize(grouped, tmp_path / "no", "bitnet")
    assert not (tmp_path / "no").exists()
    assert json.loads((grouped / "config.json").read_text())["quantization_config"]["packing"] == "base3_columns"
