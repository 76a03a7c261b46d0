"""Importance matrices: read as llama-quantize reads them, written as gguf reads them, and damaged ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import imatrix_models
from tests.gguf_edit import rewrite
from tests.oracles import libggml
from tritgguf.converter.errors import OutputError, SourceError
from tritgguf.converter.gguf_io.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

NAME = "blk.0.ffn_down.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def an_imatrix(path: Path, sums: np.ndarray, counts: np.ndarray) -> Imatrix:
    entry = Entry(np.asarray(sums, np.float32), np.asarray(counts, np.float32))
    return Imatrix(path, {NAME: entry}, ("words.txt",), 3, 512)


@pytest.mark.parametrize("file", ["demo.gguf", "experts.gguf", "experts.dat"])
def test_llama_quantize_weighs_by_the_same_numbers(file: str, models: Path) -> None:
    """libggml, given what is read here, makes the blocks that llama-quantize made with llama-imatrix's file."""
    name = file.partition(".")[0]
    model = imatrix_models.model(name, models) if not (models / f"{name}.gguf").exists() else models / f"{name}.gguf"
    tensor = next(one for one in gguf.GGUFReader(model).tensors if one.name == imatrix_models.QUANTIZED[name])
    matrices = tensor.data.reshape(-1, *tensor.data.shape[-2:])
    importance = read_imatrix(imatrix_models.recorded(file, models)).importance(tensor.name, tensor.data.shape)
    assert importance is not None
    assert importance.shape == (len(matrices), matrices.shape[-1])
    with np.load(imatrix_models.RECORDED / "quantized.npz") as recorded:
        expected = recorded[file]

    def same(weights: np.ndarray | None) -> float:
        """The share of the recorded blocks that come out."""
        blocks = [
            libggml.quantize(
                matrix[: imatrix_models.N_ROWS],
                imatrix_models.QUANTIZED_TYPE,
                None if weights is None else weights[number],
            )
            for number, matrix in enumerate(matrices)
        ]
        _, block_bytes = gguf.GGML_QUANT_SIZES[imatrix_models.QUANTIZED_TYPE]
        equal = np.stack(blocks).reshape(-1, block_bytes) == expected.reshape(-1, block_bytes)
        return float(equal.all(axis=1).mean())

    assert same(importance) > 0.95
    assert same(None) < 0.1
    assert same(np.roll(importance, 1, axis=1)) < 0.5


@pytest.mark.parametrize("file", ["demo.gguf", "experts.gguf", "experts.dat"])
def test_what_a_file_tells_of_its_origin(file: str, tmp_path: Path) -> None:
    """The keys that llama-quantize writes of it, but for the folders in which it found the files."""
    found = read_imatrix(imatrix_models.recorded(file, tmp_path))
    theirs = json.loads((imatrix_models.RECORDED / "quantized.json").read_text())[file]["keys"]
    ours = {key: value.data for key, value in found.provenance().items()}
    ours["quantize.imatrix.file"] = theirs["quantize.imatrix.file"]
    assert ours == theirs
    assert {value.type for value in found.provenance().values()} <= {
        gguf.GGUFValueType.STRING,
        gguf.GGUFValueType.UINT32,
    }


@pytest.mark.parametrize("file", ["demo.gguf", "experts.gguf"])
def test_a_written_file_is_the_same_file(file: str, tmp_path: Path) -> None:
    """Byte for byte that of llama-imatrix."""
    theirs = imatrix_models.recorded(file, tmp_path)
    found = read_imatrix(theirs)
    ours = tmp_path / "ours.gguf"
    write_imatrix(Imatrix(ours, found.entries, found.datasets, found.n_chunks, found.chunk_size))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_matrix_without_inputs_weighs_all_columns_alike(tmp_path: Path) -> None:
    found = an_imatrix(tmp_path / "i.gguf", [[2, 8], [0, 0]], [4, 0])
    importance = found.importance(NAME, (2, 5, 2))
    np.testing.assert_array_equal(importance, [[0.5, 2], [1, 1]])
    assert found.importance("blk.0.ffn_up.weight", (5, 2)) is None
    assert an_imatrix(tmp_path / "i.gguf", [[0, 0]], [0]).importance(NAME, (5, 2)) is None


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    found = an_imatrix(tmp_path / "i.gguf", [[2, 8]], [4])
    write_imatrix(found)
    with pytest.raises(OutputError, match=r"i.gguf exists already; add --force"):
        write_imatrix(found)
    write_imatrix(found, force=True)
    assert read_imatrix(tmp_path / "i.gguf").entries[NAME].counts == [4]


@pytest.mark.parametrize(
    ("sums", "counts", "complaint"),
    [
        ([[1, np.nan]], [4], f"has nan for {NAME}, expected a sum of squares, 0 or more; make it again"),
        ([[1, np.inf]], [4], f"has inf for {NAME}"),
        ([[1, -2]], [4], f"has -2 for {NAME}"),
        ([[1, 2]], [-1], f"has -1 for {NAME}, expected a count"),
        ([[1, 2]], [0.5], f"has 0.5 for {NAME}, expected a count"),
        ([[1, 2]], [np.inf], f"has inf for {NAME}, expected a count"),
        ([[1, 2, 3]], [1, 1], f"has 3 values and 2 counts for {NAME}"),
    ],
)
def test_impossible_numbers(sums: list, counts: list, complaint: str, tmp_path: Path) -> None:
    write_imatrix(an_imatrix(tmp_path / "i.gguf", sums, counts))
    with pytest.raises(SourceError, match=f"i.gguf: {complaint}.*tritgguf imatrix"):
        read_imatrix(tmp_path / "i.gguf")


def test_another_models_sizes(tmp_path: Path) -> None:
    found = an_imatrix(tmp_path / "i.gguf", [[2, 8]], [4])
    with pytest.raises(SourceError, match=rf"i.gguf: has 1 x 2 values for {NAME}, whose inputs here are 1 x 3: it is"):
        found.importance(NAME, (5, 3))
    with pytest.raises(SourceError, match="whose inputs here are 2 x 2"):
        found.importance(NAME, (2, 5, 2))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(an_imatrix(path, [[2, 8]], [4]))
    whole = gguf.GGUFReader(path)
    halved = tmp_path / "halved.gguf"
    writer = gguf.GGUFWriter(halved, "llama")
    writer.add_tensor(f"{NAME}.in_sum2", whole.tensors[0].data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=rf"halved.gguf: has {NAME}.in_sum2 alone, expected .* and {NAME}.counts"):
        read_imatrix(halved)
    with pytest.raises(SourceError, match=r"model.gguf: is a model's file \(llama\), expected an importance matrix"):
        read_imatrix(rewrite(halved, tmp_path / "model.gguf", tensors={f"{NAME}.in_sum2": None, "w": (
            np.ones((1, 2), np.float32), gguf.GGMLQuantizationType.F32)}))  # fmt: skip
    with pytest.raises(SourceError, match=r"nothing.gguf: can't be read \(No such file or directory\)"):
        read_imatrix(tmp_path / "nothing.gguf")


def test_every_cut_of_the_older_format(tmp_path: Path) -> None:
    name = NAME.encode()
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii2f", 3, 2, 1.5, 6)
    path, tail = tmp_path / "i.dat", struct.pack("<ii", 3, 9) + b"words.txt"
    for end in range(len(data + tail)):
        path.write_bytes((data + tail)[:end])
        if end in (len(data), len(data) + 4):  # what follows the values may be missing
            assert read_imatrix(path).n_chunks == (0 if end == len(data) else 3)
            continue
        with pytest.raises(
            SourceError, match=r"i.dat: is no importance matrix, neither GGUF nor the older .dat, or is"
        ):
            read_imatrix(path)
    path.write_bytes(data + tail)
    found = read_imatrix(path)
    assert (found.datasets, found.n_chunks) == (("words.txt",), 3)
    np.testing.assert_array_equal(found.importance(NAME, (5, 2)), [[0.5, 2]])
