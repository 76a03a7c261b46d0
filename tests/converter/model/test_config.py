"""What config.json means where transformers' defaults or several keys decide, against transformers 5.23.0."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoint_recipes import RECIPES, config
from tests.packed_checkpoints import PACKED
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import architecture_for
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.hyperparameters import context_length
from tritgguf.converter.model.rope import rotation, trained_length

RECIPE_OF = {"Mistral": "mistral-window", "Qwen2": "qwen2", "Qwen3": "qwen3", "Llama": "llama-gqa"}
WINDOW_KEYS = ("sliding_window", "use_sliding_window", "max_window_layers")


def decoder(keys: dict[str, Any]) -> DecoderConfig:
    return architecture_for(keys).read_config(keys)


# `sliding_window` of MistralConfig(), Qwen2Config(), Qwen3Config() with these keys.
@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("Mistral", {}, 4096),
        ("Mistral", {"sliding_window": None}, None),
        ("Mistral", {"sliding_window": 512}, 512),
        ("Qwen2", {}, None),
        ("Qwen2", {"use_sliding_window": True}, 4096),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": None}, None),
        ("Qwen3", {}, None),
        ("Qwen3", {"use_sliding_window": True}, 4096),
        ("Llama", {}, None),
    ],
)
def test_absent_window_keys_are_those_of_the_class(name: str, keys: dict[str, Any], expected: int | None) -> None:
    base = {key: value for key, value in config(RECIPES[RECIPE_OF[name]]).items() if key not in WINDOW_KEYS}
    read = decoder({**base, "max_position_embeddings": 32768, **keys})
    assert read.sliding_window == expected
    assert context_length(read) == (expected or 32768)


# `_compute_longrope_parameters(LlamaConfig(...))[1]`, and the original length that it used.
@pytest.mark.parametrize(
    ("scaling", "beside", "magnitude", "length"),
    [
        ({"original_max_position_embeddings": 64}, None, 1.3540064007726602, 64),
        ({"original_max_position_embeddings": 64, "factor": 32.0}, None, 1.3540064007726602, 64),
        ({"original_max_position_embeddings": 64, "factor": 1.0}, None, 1.0, 64),
        ({"original_max_position_embeddings": 64, "factor": 8.0}, 128, 1.1952286093343936, 128),
        ({"factor": 4.0}, None, 1.087114613009218, 2048),
        ({}, 128, 1.2535663410560174, 128),
        ({"factor": 8.0, "attention_factor": 1.25}, 128, 1.25, 128),
    ],
)
def test_longrope_s_magnitude(scaling: dict[str, Any], beside: int | None, magnitude: float, length: int) -> None:
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32, **scaling}
    read = decoder(
        {**config(RECIPES["llama-gqa"]), "rope_scaling": longrope, "original_max_position_embeddings": beside}
    )
    keys = rotation(read, "llama", reads_divisors=True).metadata
    found = keys["llama.rope.scaling.attn_factor"].data if magnitude != 1 else 1.0  # llama.cpp's default has no key
    assert found == pytest.approx(magnitude, rel=1e-12)
    assert ("llama.rope.scaling.attn_factor" in keys) == (magnitude != 1)
    assert trained_length(read) == length


@pytest.mark.parametrize(("factor", "taken"), [(16.0, True), (8.0, False)])
def test_minicpm_derives_longrope_s_factor(factor: float, taken: bool) -> None:
    """MiniCPM runs code of its own, `MiniCPMLongRoPE`, which takes the quotient of the lengths."""
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "factor": factor}
    keys = {**config(PACKED["bitcpm"].base), "rope_scaling": {**longrope, "original_max_position_embeddings": 128}}
    if taken:
        decoder(keys)
        return
    with pytest.raises(UnsupportedError, match=r"rope_scaling\.factor is 8, but .* = 16: remove the key"):
        decoder(keys)
