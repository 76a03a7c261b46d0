"""The header against gguf's own writer, byte for byte."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter

from tests.checkpoints import build
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.header import entry_bytes, header_bytes
from tritgguf.converter.gguf_io.metadata import (
    Metadata,
    Value,
    boolean,
    float32,
    float32s,
    int32s,
    string,
    strings,
    uint32,
)
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.file_plan import FilePart
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request

NUMBERS = {kind: 100 for kind in GGUFValueType if kind.name.startswith(("INT", "UINT", "FLOAT"))}


def theirs(metadata: Metadata, part: FilePart, folder: Path) -> bytes:
    writer = GGUFWriter(folder / "theirs.gguf", str(metadata["general.architecture"].data))
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value.data, value.type, value.element)
    for tensor in part.tensors:
        spec = tensor.spec
        writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), tensor.n_bytes, tensor.codec.ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return (folder / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("recipe", ["llama-gqa", "llama1", "qwen2"])
def test_headers_of_models(recipe: str, tmp_path: Path) -> None:
    opened = open_model(build(recipe, tmp_path / "model"))
    (part,) = make_plan(opened, Request.named("tq1_0", "mse"), 1, None).parts
    entries = [tensor.entry for tensor in part.tensors]
    ours = header_bytes(opened.metadata, entries)
    assert ours == theirs(opened.metadata, part, tmp_path)
    assert len(ours) == len(header_bytes(opened.metadata, ())) + sum(map(entry_bytes, entries))


def test_every_type_of_value(tmp_path: Path) -> None:
    metadata: Metadata = {
        "flag": boolean(True),
        "text": string("Ünïcode 🦙"),
        "words": strings(["a", "", "ß"]),
        "tokens": Value([b"\xff\xfe", b"ok"], GGUFValueType.ARRAY, GGUFValueType.STRING),
        "general.architecture": string("llama"),
        "floats": float32s([0.1, -2.5, 1e30]),
        "numbers": int32s([-(2**31), 7, 2**31 - 1]),
        "flags": Value([True, False], GGUFValueType.ARRAY, GGUFValueType.BOOL),
        "one": uint32(2**32 - 1),
        "third": float32(1 / 3),
        **{kind.name: Value(number, kind) for kind, number in NUMBERS.items()},
        **{f"{kind.name}s": Value([number, 1], GGUFValueType.ARRAY, kind) for kind, number in NUMBERS.items()},
    }
    assert header_bytes(metadata, ()) == theirs(metadata, FilePart(b"", ()), tmp_path)


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "ß🦙", "b" * 255, "c" * 256, "ü" * 40_000, "d" * 70_000, "e"],
        ["empty", "", "ones", "", ""],
        ["", "a"],
        ["a\0b", "\0", "\0" * 8, "\0" * 7 + "c"],
        ["\0" * 8, ""],
        [""],
    ],
)
def test_texts_of_any_length_and_with_zeros(texts: list[str], tmp_path: Path) -> None:
    metadata: Metadata = {"general.architecture": string("llama"), "words": strings(texts), "end": uint32(7)}
    assert header_bytes(metadata, ()) == theirs(metadata, FilePart(b"", ()), tmp_path)


def test_no_texts() -> None:
    """gguf's writer has no empty arrays, its layout does: the elements' type, a count of zero and nothing more."""
    stored = header_bytes({"general.architecture": string("llama"), "words": strings([])}, ())
    kinds = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, 0)
    assert stored.endswith(b"words" + kinds)


@pytest.mark.parametrize("value", [string("half a \ud83e"), strings(["whole", "\udd99"])])
def test_halves_of_characters_are_no_text(value: Value) -> None:
    metadata: Metadata = {"general.architecture": string("llama"), "tokenizer.some.key": value}
    with pytest.raises(SourceError, match=r"^tokenizer\.some\.key holds '[^\n]*', which isn't valid Unicode"):
        header_bytes(metadata, ())
