"""Plans of GGUF files of which nothing but the header is here: what they say must hold for the whole file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import foreign_gguf as files
from tests.checkpoints import build
from tests.converter.gguf_io.test_hadamard import BLOCK, SHAPES, keys
from tritgguf.converter import SourceError, UnsupportedError, convert, plan
from tritgguf.converter.gguf_io.header_reader import HeaderReader
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.gguf import HEADER_ALONE
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.file_plan import FilePlan


def f16(folder: Path) -> Path:
    return convert(build("llama-tied", folder / "model"), folder / "f16.gguf", "f16", check=False).out


def q8_0(folder: Path) -> Path:
    return convert(build("llama-tied", folder / "model"), folder / "q8_0.gguf", "q8_0", check=False).out


def foreign(folder: Path) -> Path:
    stored, _ = files.model(files.KINDS["I2_S"])
    return files.add_tensors(files.base_file(folder / "base.gguf"), folder / "foreign.gguf", stored)


def rotated(folder: Path) -> Path:
    base = files.base_file(folder / "base.gguf", hidden=BLOCK, ffn=BLOCK)
    stored = {name: (shape, 0, np.ones(shape, np.float32).tobytes()) for name, shape in SHAPES.items()}
    return files.add_tensors(base, folder / "rotated.gguf", stored, keys=keys(list(SHAPES)))


def header_of(file: Path, folder: Path) -> Path:
    """Return a file of the same size that has no more of its tensors than holes."""
    data = file.read_bytes()
    header = HeaderReader(file, data)
    header.metadata()
    header.tensors()
    folder.mkdir()
    with (folder / file.name).open("wb") as hollow:
        hollow.write(data[: header.position])
        hollow.truncate(len(data))
    return folder / file.name


@pytest.fixture(scope="module", params=[f16, q8_0, foreign, rotated], ids=lambda make: make.__name__)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("whole"))


def types(found: FilePlan) -> list[tuple[str, str]]:
    return [(tensor.spec.name, tensor.codec.name) for tensor in found.tensors]


@pytest.mark.parametrize("kind", ["tq2_0", "f16", "q8_0"])
def test_what_a_header_tells_holds_for_the_file(whole: Path, kind: str, tmp_path: Path) -> None:
    header = header_of(whole, tmp_path / "header")
    options = {"embedding_type": "f16", "output_type": "f16", "fallback": "f16"}
    if whole.stem == "rotated" and kind == "tq2_0":
        with pytest.raises(UnsupportedError, match="ask for a type that keeps them"):
            plan(header, kind, values=False, **options)
        return
    planned, found = plan(header, kind, values=False, **options), plan(whole, kind, **options)
    assert types(planned) == types(found)
    assert planned.file_bytes == found.file_bytes
    assert HEADER_ALONE in planned.notes
    told = [(told.exact, known.exact) for told, known in zip(planned.tensors, found.tensors, strict=True)]
    assert all(exact in (None, known) for exact, known in told)
    assert (None in [exact for exact, _ in told]) == (whole.stem != "f16" or kind != "f16")


def test_no_value_of_a_hole_is_read(whole: Path, tmp_path: Path) -> None:
    header = header_of(whole, tmp_path / "header")
    assert not np.any(next(iter(read_gguf(header).tensors.values())).read(slice(0, 1)))  # that is what it would be
    for tensor in (open_model(header, values=False).tensors or {}).values():
        for read in (tensor.read, tensor.floats):
            with pytest.raises(SourceError, match="only its header is here"):
                read(slice(0, 1))
        # What is computed of a file's tensor, as a basis that is undone, has no bytes in it.
        refused = SourceError if tensor.ggml_type is not None or tensor.foreign else NotImplementedError
        with pytest.raises(refused):
            tensor.read_bytes(slice(0, 1))


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "auto", "max_bits": 5.0}])
def test_an_automatic_type_needs_values(choice, tmp_path: Path) -> None:
    header = header_of(q8_0(tmp_path), tmp_path / "header")
    with pytest.raises(UnsupportedError, match="weights aren't here, so no exact type can be chosen: add --type"):
        plan(header, values=False, **choice)
    with pytest.raises(UnsupportedError, match="add --embedding-type, such as --embedding-type f16"):
        plan(header, "tq2_0", fallback="f16", embedding_type="auto", values=False)
