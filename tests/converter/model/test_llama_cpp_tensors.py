"""Converted files against those of llama.cpp's own converter, recorded in golden/llama_cpp_tensors.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests import checkpoints, paths
from tests.gguf_edit import rewrite
from tests.golden.record_llama_cpp_tensors import in_short
from tritgguf.converter import convert, form_named, quantize
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.gguf_io.reader import read_gguf

RECORDED = json.loads((paths.GOLDEN / "llama_cpp_tensors.json").read_text(encoding="utf-8"))
# Keys that say what others say as well, or the tensors, or whose value the graph assumes without them.
REDUNDANT = (
    "vocab_size",
    "attention.key_length",
    "attention.value_length",
    "attention.recurrent_layers",
    "full_attention_interval",
    "rope.dimension_count",
    "rope.scaling.original_context_length",
)
Folder = Callable[[str], Path]


def hyperparameters(file: Path) -> dict[str, Any]:
    found = read_gguf(file)
    return {key: value.data for key, value in found.metadata.items() if key.startswith(f"{found.architecture}.")}


def converted(name: str, model: Folder, out: Path) -> Path:
    """Return a file whose tensors are those of llama.cpp's."""
    convert(model(name), out, "f32", embedding_type="f32", output_type="f32", check=False)
    assert {tensor.name: in_short(tensor) for tensor in gguf.GGUFReader(out).tensors} == RECORDED[name]["tensors"]
    return out


@pytest.mark.parametrize("name", RECORDED)
def test_tensors_and_keys_are_those_that_llama_cpp_writes(name: str, model: Folder, tmp_path: Path) -> None:
    recorded = RECORDED[name]
    assert checkpoints.digest(model(name)) == recorded["checkpoint_sha256"], "record it again: see golden/README.md"
    ours, theirs = hyperparameters(converted(name, model, tmp_path / "out.gguf")), recorded["keys"]
    prefix = f"{read_gguf(tmp_path / 'out.gguf').architecture}."
    for key in ours.keys() | theirs.keys():
        if key == "phi3.context_length":  # ours ends where the graph would attend to more than the model's window
            assert ours[key] == min(theirs[key], theirs["phi3.attention.sliding_window"] or theirs[key])
        elif key == "phi3.attention.sliding_window":
            assert ours.get(key, 0) == theirs[key]
        elif key in ours and key in theirs:
            number = isinstance(theirs[key], float)
            assert ours[key] == (pytest.approx(theirs[key], rel=1e-6) if number else theirs[key]), key
        else:
            assert key.removeprefix(prefix) in REDUNDANT, key


@pytest.mark.parametrize("name", RECORDED)
def test_llama_cpp_s_file_goes_back_to_the_checkpoint(name: str, model: Folder, tmp_path: Path) -> None:
    """Every value of it: llama.cpp's tensors under llama.cpp's keys."""
    made = converted(name, model, tmp_path / "made.gguf")
    keys = {**dict.fromkeys(hyperparameters(made)), **RECORDED[name]["keys"]}
    theirs = rewrite(made, tmp_path / "theirs.gguf", keys=keys)
    result = quantize(theirs, tmp_path / "folder", form_named(None, dtype="f32"), check=False)
    assert not result.plan.notes
    stored, originals = read_tensors(result.out), checkpoints.weights(name)
    assert stored.keys() == originals.keys()
    for key, values in originals.items():
        assert stored[key].shape == values.shape
        np.testing.assert_array_equal(stored[key].read(slice(None)).reshape(values.shape), values, err_msg=key)
    again = convert(result.out, tmp_path / "again.gguf", "f16", check=False).out
    assert hyperparameters(again) == hyperparameters(made)
