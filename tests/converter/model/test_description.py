"""The keys that describe a model, against gguf's own: `Metadata.load` and what its writer makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.checkpoint_recipes import RECIPES
from tests.checkpoints import build
from tritgguf.converter import convert
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.description import Parameters, description

# The converter's own rules: README.md's licence in one text, sampling checked and typed, the folder's name as it is.
OWN = ("general.license", "general.sampling", "general.name", "general.architecture")
CARD = """\
license: apache-2.0
author: Ada
model_version: v2
url: https://example.org/model
repo_url: https://example.org/repo
base_model:
- Qwen/Qwen2.5-Coder-1.5B-Instruct
- https://huggingface.co/meta-llama/Llama-3.2-1B
- https://example.org/other
datasets: [bigcode/the-stack, HuggingFaceTB/smollm-corpus-v1.2]
language:
- en
- no
tags: [code, chat]
pipeline_tag: text-generation
"""
NAMED = """\
basename: mine
size_label: tiny
finetune: ours
organization: us
description: >
  two
  lines
"""


def gguf_s(folder: Path, n_parameters: int) -> dict[str, Any]:
    """Return the general keys that llama.cpp's converter would write, as `prepare_metadata` in conversion/base.py."""
    metadata = gguf.Metadata.load(None, folder, None, n_parameters)
    metadata.name = metadata.name or folder.name
    metadata.size_label = metadata.size_label or gguf.utility.size_label(n_parameters, n_parameters, 0, 0)
    writer = gguf.GGUFWriter(None, "llama")
    metadata.set_gguf_meta_model(writer)
    return {key: value.value for key, value in writer.kv_data[0].items() if key.startswith("general.")}


@pytest.mark.parametrize(
    ("folder", "card", "origin"),
    [
        ("model", "", None),
        ("Qwen2.5-Coder-0.5B-Instruct", "", None),
        ("tiny-llama-200k-chat-v1.5", CARD, None),
        ("model", CARD + NAMED, None),
        ("model", "base_model: a/b\ndataset: c/d-v1\ntags: one\n", "meta-llama/Llama-2-7b-hf"),
        ("model", "base_models: [{name: Parent, organization: They, url: https://example.org}]\n", "/home/me/model/x"),
        ("Ternary-Bonsai-8B", "base_model_sources: x/y\n", "models/falcon-e-1b"),
    ],
)  # fmt: skip
def test_the_keys_are_gguf_s(folder: str, card: str, origin: str | None, tmp_path: Path) -> None:
    model = build("llama-tied", tmp_path / folder)
    if card:
        (model / "README.md").write_text(f"---\n{card}---\n# A model\n", encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if origin is not None:
        (model / "config.json").write_text(json.dumps({**config, "_name_or_path": origin}), encoding="utf-8")
    written = convert(model, tmp_path / "out.gguf", "f16", check=False)
    n_parameters = sum(tensor.n_elements for tensor in gguf.GGUFReader(written.out).tensors)
    expected = {key: value for key, value in gguf_s(model, n_parameters).items() if not key.startswith(OWN)}
    ours = read_gguf(written.out).metadata
    named = {key: value.data for key, value in ours.items() if key.startswith("general.") and not key.startswith(OWN)}
    for key in ("type", "file_type", "quantization_version"):
        assert named.pop(f"general.{key}", None) is not None
    assert named == {key: int(value) if isinstance(value, int) else value for key, value in expected.items()}
    assert "general.size_label" in named


@pytest.mark.parametrize("name", ["qwen3moe", "qwen3next", "mixtral"])
def test_the_size_label_tells_the_number_of_experts(name: str, tmp_path: Path) -> None:
    written = convert(build(name, tmp_path / "model"), tmp_path / "out.gguf", "f16", check=False)
    writer = gguf.GGUFWriter(None, "llama")
    for tensor in gguf.GGUFReader(written.out).tensors:
        writer.add_tensor(tensor.name, np.zeros(tuple(reversed(tensor.shape.tolist())), np.int8))
    label = gguf.utility.size_label(*writer.get_total_parameter_count())
    assert label.startswith(f"{RECIPES[name].experts}x")
    assert read_gguf(written.out).metadata["general.size_label"].data == label


def test_what_describes_nothing_is_left_out() -> None:
    """Front matter is a stranger's: values of other types, and texts without end, give no keys and no error."""
    card = {
        "name": {"a": 1},
        "version": 1.5,
        "author": True,
        "tags": ["a", 5, None],
        "language": ["en", ["fr"]],
        "base_model": [["a/b"]],
        "datasets": [{"name": 5, "url": ["x"]}, {}],
        "description": "x" * 100_000,
        7: "seven",
    }
    described = description(card, {"_name_or_path": ["a"]}, "model", Parameters(1_234_567, 1_234_567))
    keys = {key: value.data for key, value in described.items()}
    assert keys == {
        "general.version": "1.5",
        "general.size_label": "1.2M",
        "general.tags": ["a"],
        "general.languages": ["en"],
        "general.dataset.count": 2,
        "general.dataset.0.name": "5",
    }
