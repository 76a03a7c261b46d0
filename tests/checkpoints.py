"""Seeded Hugging Face checkpoints of two to four layers: the models that the goldens were recorded on.

`build(name, folder)` writes the checkpoint of one recipe. The bytes are the same on every platform and with every
version of every library: values come from PCG64's raw 64-bit stream through integer sums and single IEEE
multiplications, and the safetensors container is written here, not by a library.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import tiny_tokenizers
from tests.checkpoint_recipes import RECIPES, Recipe, config
from tests.decoder_layers import NORMS_PLUS_ONE, QUERY_KEY_NORMS, has_query_key_norms, layer_shapes

Floats = NDArray[np.float32]


def build(name: str, folder: Path, recipe: Recipe | None = None) -> Path:
    """Write the checkpoint of recipe `name`, or of `recipe` in its place, into `folder`, and return `folder`."""
    recipe = recipe or RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config(recipe))
    tiny_tokenizers.write(recipe.tokenizer, folder)
    _write_weights(recipe, weights(name, recipe), folder)
    return folder


def digest(folder: Path) -> str:
    """Return the sha256 over config.json and the weights in `folder`: what a golden was recorded on."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if "tokenizer" not in path.name):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def token_ids(name: str) -> list[int]:
    """Return the seeded token sequence that the golden of recipe `name` was recorded on."""
    recipe = RECIPES[name]
    return [int(word % recipe.vocab) for word in _raw_words(f"{name}/token_ids", recipe.n_tokens)]


def weights(name: str, recipe: Recipe | None = None) -> dict[str, Floats]:
    """Return every tensor of recipe `name`, or of `recipe`, by its name, with values that its dtype holds exactly."""
    recipe = recipe or RECIPES[name]
    tensors = {key: _tensor(name, recipe, key, shape) for key, shape in _shapes(recipe).items()}
    if recipe.inv_freq:
        exponents = np.arange(0, recipe.size_per_head, 2) / recipe.size_per_head
        for layer in range(recipe.layers):
            # Seven digits are the same everywhere; the last bits of a power are not.
            frequencies = np.array([round(10000.0**-exponent, 7) for exponent in exponents], np.float32)
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    return {key: _rounded(values, _dtype(recipe, key)) for key, values in tensors.items()}


def is_linear(tensor_name: str) -> bool:
    """Say whether a tensor is one of the linear weights that become ternary."""
    inputs = tuple(f"in_proj_{part}.weight" for part in ("qkv", "z", "qkvz"))
    return tensor_name.endswith(("_proj.weight", *inputs, ".w1.weight", ".w2.weight", ".w3.weight"))


# --- values ------------------------------------------------------------------------------------------------------


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    hidden, vocab = recipe.hidden, recipe.vocab
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(recipe.layers):
        shapes |= {f"model.layers.{layer}.{key}": shape for key, shape in layer_shapes(recipe, layer).items()}
    if not recipe.tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _tensor(name: str, recipe: Recipe, key: str, shape: tuple[int, ...]) -> Floats:
    noise = _bell(f"{name}/{key}", shape)
    if key.endswith(".bias"):
        return noise * np.float32(0.5)
    if key.endswith(("A_log", "dt_bias")):
        return noise * np.float32(0.75)
    if key.endswith("conv1d.weight"):
        return noise * np.float32(0.5)
    if key.endswith(("in_proj_a.weight", "in_proj_b.weight", "in_proj_ba.weight")):
        return noise * np.float32(1 / math.sqrt(recipe.hidden))
    plus_one = recipe.architecture in NORMS_PLUS_ONE and not key.endswith("linear_attn.norm.weight")
    base = 0 if plus_one else 1
    if key.endswith(QUERY_KEY_NORMS):
        return np.float32(base + 0.25) + noise * np.float32(0.375)
    if key.endswith("norm.weight"):
        return np.float32(base) + noise * np.float32(0.25)
    if key == ("model.embed_tokens.weight" if recipe.tied else "lm_head.weight"):
        return noise * _row_lengths(f"{name}/{key}/lengths", recipe.vocab) * np.float32(3 / math.sqrt(recipe.hidden))
    if key == "model.embed_tokens.weight":
        return noise
    if key.endswith((".gate.weight", "shared_expert_gate.weight")):
        # Large enough that roundings seldom choose other experts.
        return noise * np.float32(4 / math.sqrt(recipe.hidden))
    gain = 1.0
    if key.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")) and not has_query_key_norms(recipe):
        gain = 1.25  # large queries and keys make attention depend on positions, so that a wrong rotation shows
    if key.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "w2.weight")) and not recipe.tied:
        gain = 0.75  # and a residual stream that the embedding leads keeps the two best tokens apart
    deviation = gain / math.sqrt(shape[-1])
    return noise * np.float32(deviation) if recipe.weights == "float" else _ternary(name, recipe, key, noise, deviation)


def _ternary(name: str, recipe: Recipe, key: str, noise: Floats, deviation: float) -> Floats:
    """Return a {-a, 0, a} grid of about that deviation; each a has 8 significant bits, so f16 and bf16 hold it."""
    n_rows, n_columns = noise.shape
    trits = np.sign(noise) * (np.abs(noise) > np.float32(0.43))  # two thirds of a bell curve, as absmean leaves it
    shape = {
        "ternary-tensor": (1, 1),
        "ternary-shard": (2, 1),
        "ternary-row": (n_rows, 1),
        "ternary-block": (n_rows, n_columns // 256),
    }[recipe.weights]
    spread = _raw_words(f"{name}/{key}/scales", shape[0] * shape[1]) % np.uint64(64)
    unit = 2.0 ** math.floor(math.log2(deviation * 1.25))
    scales = ((128 + spread).astype(np.float32) * np.float32(unit / 128)).reshape(shape)
    if recipe.weights in ("ternary-row", "ternary-block"):
        scales[0, 0] = 0  # a row or block of zeros must survive too
    grid = scales.repeat(n_rows // shape[0], axis=0).repeat(n_columns // shape[1], axis=1)
    return (trits * grid).astype(np.float32)


def _raw_words(label: str, count: int) -> NDArray[np.uint64]:
    """Return `count` words of PCG64's raw stream, seeded by `label`; numpy promises that this stream never changes."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
    return np.asarray(np.random.PCG64(seed).random_raw(count), dtype=np.uint64)


def _bell(label: str, shape: tuple[int, ...]) -> Floats:
    """Return values of mean 0 and deviation 1: sums of four 16-bit integers, scaled by one multiplication."""
    words = _raw_words(label, math.prod(shape))
    total = sum(((words >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int32) for shift in (0, 16, 32, 48))
    return ((total - 2 * 0xFFFF).astype(np.float32) * np.float32(math.sqrt(3) / 65536)).reshape(shape)


def _row_lengths(label: str, n_rows: int) -> Floats:
    """Return 0.5 + 2u⁴ per row, (n_rows, 1): unequal rows keep the two best tokens apart, as in a trained model."""
    uniform = (_raw_words(label, n_rows) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    squared = uniform * uniform
    return (np.float32(0.5) + np.float32(2) * squared * squared)[:, None]


# --- files -------------------------------------------------------------------------------------------------------


def _dtype(recipe: Recipe, key: str) -> str:
    return "F32" if key.endswith("inv_freq") else recipe.dtype


def _bf16_bits(values: Floats) -> NDArray[np.uint32]:
    bits = values.view(np.uint32)
    return bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)) >> np.uint32(16)  # ties to even


def _rounded(values: Floats, dtype: str) -> Floats:
    if dtype == "BF16":
        return (_bf16_bits(values) << np.uint32(16)).view(np.float32)
    return values.astype(_NUMPY_TYPES[dtype]).astype(np.float32)


def _encode(values: Floats, dtype: str) -> bytes:
    if dtype == "BF16":
        return _bf16_bits(values).astype("<u2").tobytes()
    return values.astype(_NUMPY_TYPES[dtype]).tobytes()


_NUMPY_TYPES = {"F16": "<f2", "F32": "<f4"}


def _write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors.values()))


def _write_weights(recipe: Recipe, tensors: Mapping[str, Floats], folder: Path) -> None:
    encoded = {
        key: (_dtype(recipe, key), values.shape, _encode(values, _dtype(recipe, key)))
        for key, values in tensors.items()
    }
    if recipe.shards == 1:
        _write_safetensors(folder / "model.safetensors", encoded)
        return
    weight_map = {}
    for shard in range(recipe.shards):
        file_name = f"model-{shard + 1:05}-of-{recipe.shards:05}.safetensors"
        # Neighbours go to different files, so that a layer is never whole in one of them.
        members = {key: encoded[key] for key in list(encoded)[shard :: recipe.shards]}
        _write_safetensors(folder / file_name, members)
        weight_map |= dict.fromkeys(members, file_name)
    total_size = sum(len(data) for *_, data in encoded.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
