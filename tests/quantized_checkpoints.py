"""Seeded checkpoints of two layers, packed as GPTQ, AutoRound and MLX: `build` writes one, `weights` decodes it.

Both start from integers, zero points and scales (quantized_layers.py), without the converter. That the packages pack
the same bytes of these is recorded in golden/quantized.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import checkpoints, quantized_layers, tiny_tokenizers
from tests.checkpoint_recipes import Recipe, config
from tests.packed_checkpoints import Stored, floats, write_config, write_tensors
from tests.quantized_layers import Layer

Floats = NDArray[np.float32]
QWEN3 = Recipe(
    "Qwen3ForCausalLM", "float", "F16", head_dim=64, rope_theta=1000000.0, tokenizer="qwen2", vocab=384, transformers=4
)
LLAMA = Recipe("LlamaForCausalLM", "float", "F16", rope_theta=1000042.0)
QWEN2 = Recipe("Qwen2ForCausalLM", "float", "F16", rope_theta=1000000.0, tokenizer="qwen2", vocab=384)


@dataclass(frozen=True)
class Quantized:
    """One checkpoint: `base` gives shapes and config.json, `layer` how its linear weights are packed.

    `others` gives single modules, by a part of their name, another layer; None: they stay floats. `embeddings` are
    packed too. `keys` are those of config.json that tell how it is packed.
    """

    base: Recipe
    packing: str
    layer: Layer
    keys: Mapping[str, Any]
    others: Mapping[str, Layer | None] = field(default_factory=dict)
    embeddings: bool = False

    def of(self, module: str) -> Layer | None:
        """Return how a module is packed."""
        for part, layer in self.others.items():
            if part in module:
                return layer
        packed = module.endswith("_proj") or (self.embeddings and module in ("model.embed_tokens", "lm_head"))
        return self.layer if packed else None


def gptq(**keys: Any) -> dict[str, Any]:
    """Return config.json's keys as GPTQModel writes them."""
    common = {"quant_method": "gptq", "bits": 2, "group_size": 128, "sym": True, "desc_act": False, "lm_head": False}
    named = {"checkpoint_format": "gptq", "format": "gptq", "pack_dtype": "int32", "meta": {"quantizer": ["test:1"]}}
    return {"quantization_config": {**common, **named, **keys}}


def auto_round(**keys: Any) -> dict[str, Any]:
    """Return config.json's keys as AutoRound writes them."""
    common = {"quant_method": "auto-round", "bits": 2, "group_size": 64, "sym": True, "data_type": "int", "iters": 200}
    return {"quantization_config": {**common, "packing_format": "auto_round:auto_gptq", **keys}}


def mlx(**keys: Any) -> dict[str, Any]:
    """Return config.json's keys as mlx-lm writes them."""
    said = {"group_size": 128, "bits": 2, **keys}
    return {"quantization": said, "quantization_config": said}


_DOWN, _O = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"
_DYNAMIC = {r"+:.*\.1\.mlp\.down_proj": {"bits": 4, "group_size": 32}, r"-:.*\.0\.self_attn\.o_proj": {}}
QUANTIZED: Mapping[str, Quantized] = {
    "gptq": Quantized(QWEN3, "gptq", Layer(2, 128), gptq()),
    "gptq-v2": Quantized(
        LLAMA,
        "gptq",
        Layer(2, 64, minus_one=False),
        gptq(checkpoint_format="gptq_v2", format="gptq_v2", group_size=64, dynamic=_DYNAMIC),
        {_DOWN: Layer(4, 32, minus_one=False), _O: None},
    ),
    "gptq-rows": Quantized(QWEN2, "gptq", Layer(2, -1), gptq(group_size=-1)),
    "gptq-ternary": Quantized(QWEN3, "gptq", Layer(2, 256, signed=True, least=1), gptq(group_size=256)),
    "gptq-zeros": Quantized(QWEN3, "gptq", Layer(2, 64, symmetric=False, least_zero=0), gptq(group_size=64, sym=False)),
    "gptq-4-bits": Quantized(LLAMA, "gptq", Layer(4, 128, scale_bits=11), gptq(bits=4)),
    "auto-round": Quantized(
        QWEN3,
        "auto_round",
        Layer(2, 64, signed=True),
        auto_round(extra_config={_DOWN: {"bits": 8}, _O: {"bits": 16, "data_type": "float"}}),
        {_DOWN: Layer(8, 64, signed=True), _O: None},
    ),
    "auto-round-plain": Quantized(
        LLAMA,
        "auto_round",
        Layer(2, 64, signed=True, minus_one=False),
        auto_round(packing_format="auto_round:gptqmodel"),
    ),
    "mlx-bonsai": Quantized(
        replace(QWEN3, tied=True),
        "mlx",
        Layer(2, 128, bias_per_scale=-1, signed=True),
        mlx(),
        embeddings=True,
    ),
    "mlx-auto-round": Quantized(
        LLAMA,
        "mlx",
        Layer(2, 64, signed=True, bias_per_scale=-2, dtype="BF16"),
        mlx(group_size=64, **{_DOWN: {"bits": 4, "group_size": 32}, _O: False}),
        {_DOWN: Layer(4, 32, bias_per_scale=-8, dtype="F16"), _O: None},
    ),
    "mlx-4-bits": Quantized(LLAMA, "mlx", Layer(4, 64, bias_per_scale=-8, dtype="BF16"), mlx(bits=4, group_size=64)),
}


def build(name: str, folder: Path) -> Path:
    """Write checkpoint `name` into `folder` (made if missing) and return `folder`."""
    quantized = QUANTIZED[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {**config(quantized.base), **quantized.keys})
    tiny_tokenizers.write(quantized.base.tokenizer, folder)
    write_tensors(folder, stored(name))
    return folder


def build_floats(name: str, folder: Path) -> Path:
    """Write the same model as plain float32."""
    base = replace(QUANTIZED[name].base, dtype="F32")
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config(base))
    tiny_tokenizers.write(base.tokenizer, folder)
    write_tensors(folder, {key: floats(values, "F32") for key, values in weights(name).items()})
    return folder


def stored(name: str) -> Stored:
    """Return what model.safetensors of checkpoint `name` holds."""
    return {key: entry for _, _, entries in _tensors(name) for key, entry in entries.items()}


def weights(name: str) -> dict[str, Floats]:
    """Return every tensor as the model computes with it, by the checkpoint's names."""
    return {key: values for key, values, _ in _tensors(name)}


def _tensors(name: str) -> Iterator[tuple[str, Floats, Stored]]:
    """Yield each tensor's name, what the model computes with, and what the file holds for it."""
    quantized = QUANTIZED[name]
    base = quantized.base
    for key, shape in checkpoints._shapes(base).items():
        module = key.removesuffix(".weight")
        layer = quantized.of(module) if module != key else None
        if layer is None:
            values = checkpoints._rounded(checkpoints._tensor(name, base, key, shape), base.dtype)
            yield key, values, {key: floats(values, base.dtype)}
        else:
            yield key, *_packed(f"{name}/{key}", quantized.packing, layer, module, (shape[0], shape[1]))


def _packed(label: str, packing: str, layer: Layer, module: str, shape: tuple[int, int]) -> tuple[Floats, Stored]:
    codes, scales = quantized_layers.integers(label, layer, shape), quantized_layers.scales(label, layer, shape)
    if packing == "mlx":
        words = quantized_layers.packed(codes, layer.bits)
        biases = scales * np.float32(layer.bias_per_scale)
        values = codes * quantized_layers.per_column(scales, shape[1]) + quantized_layers.per_column(biases, shape[1])
        entries = {f"{module}.scales": floats(scales, layer.dtype), f"{module}.biases": floats(biases, layer.dtype)}
        return values, {f"{module}.weight": ("U32", words.shape, words.tobytes()), **entries}
    zeros = quantized_layers.zeros(label, layer, shape)
    integers = quantized_layers.gptq_entries(codes, zeros, layer)
    if packing == "auto_round":
        del integers["g_idx"]
    entries = {f"{module}.{key}": ("I32", words.shape, words.tobytes()) for key, words in integers.items()}
    entries[f"{module}.scales"] = floats(np.ascontiguousarray(scales.T), "F16")
    return quantized_layers.weights(label, layer, shape), entries


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2])))
