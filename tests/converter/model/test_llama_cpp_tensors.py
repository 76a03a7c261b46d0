"""Converted files against those of llama.cpp's own converter, recorded in golden/llama_cpp_tensors.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from tests import checkpoints, paths
from tests.golden.record_llama_cpp_tensors import in_short
from tritgguf.converter import convert
from tritgguf.converter.gguf_io.reader import read_gguf

RECORDED = json.loads((paths.GOLDEN / "llama_cpp_tensors.json").read_text(encoding="utf-8"))
# Keys that say what others say as well, or the tensors, or whose value the graph assumes without them.
REDUNDANT = ("vocab_size", "attention.recurrent_layers", "full_attention_interval", "rope.dimension_count")


@pytest.mark.parametrize("name", RECORDED)
def test_tensors_and_keys_are_those_that_llama_cpp_writes(
    name: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    recorded = RECORDED[name]
    assert checkpoints.digest(model(name)) == recorded["checkpoint_sha256"], "record it again: see golden/README.md"
    out = convert(model(name), tmp_path / "out.gguf", "f32", embedding_type="f32", output_type="f32", check=False).out
    assert {tensor.name: in_short(tensor) for tensor in gguf.GGUFReader(out).tensors} == recorded["tensors"]
    file, theirs = read_gguf(out), recorded["keys"]
    prefix = f"{file.architecture}."
    ours = {key: value.data for key, value in file.metadata.items() if key.startswith(prefix)}
    for key in ours.keys() | theirs.keys():
        if key in ours and key in theirs:
            number = isinstance(theirs[key], float)
            assert ours[key] == (pytest.approx(theirs[key], rel=1e-6) if number else theirs[key]), key
        else:
            assert key.removeprefix(prefix) in REDUNDANT, key
