"""A packed checkpoint of BitNet 2B-4T's full shape, with random trits: convert it, open it, decode.

    python -m tests.bench.bitnet_2b4t FOLDER [--type tq2_0]

Prints the file's size, the seconds each step takes, tokens per second and peak memory. Needs 3.5 GB of disk. How much
of the decoding is the activation's callback is what relu2_overhead.py measures.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests import tiny_tokenizers

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD, VOCAB = 2560, 6912, 30, 20, 5, 128, 128256
CONFIG = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "max_position_embeddings": 4096,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB,
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    },
}
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
NORMS = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN}
NORMS |= {"self_attn.attn_sub_norm": HIDDEN, "mlp.ffn_sub_norm": FFN}


def bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2")


def tensors():
    """Yield name, dtype, shape and a function that makes the data, so that only one tensor is held at a time."""
    rng = np.random.default_rng(58)
    size = VOCAB * HIDDEN
    yield (
        "model.embed_tokens.weight",
        "BF16",
        (VOCAB, HIDDEN),
        lambda: bf16(rng.standard_normal(size, np.float32) * 0.7),
    )
    for layer in range(LAYERS):
        for part, (n_rows, n_columns) in LINEARS.items():
            name, packed = f"model.layers.{layer}.{part}.weight", (n_rows // 4, n_columns)

            def trits(shape: tuple[int, int] = packed) -> np.ndarray:
                digits = rng.integers(0, 3, (4, *shape), dtype=np.uint8)
                return digits[0] | digits[1] << 2 | digits[2] << 4 | digits[3] << 6

            yield name, "U8", packed, trits
            scale = np.float32([1.2 / np.sqrt(n_columns)])
            yield name + "_scale", "BF16", (1,), lambda scale=scale: bf16(scale)
        for part, length in NORMS.items():
            name = f"model.layers.{layer}.{part}.weight"
            yield name, "BF16", (length,), lambda length=length: bf16(np.ones(length, np.float32))
    yield "model.norm.weight", "BF16", (HIDDEN,), lambda: bf16(np.ones(HIDDEN, np.float32))


def write_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tiny_tokenizers.write("llama3", folder)
    header, end, items = {}, 0, {"U8": 1, "BF16": 2}
    for name, dtype, shape, _ in tensors():
        n_bytes = int(np.prod(shape)) * items[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for *_, make in tensors():
            sink.write(make().data)


def decode(file: Path) -> None:
    import tritgguf.runtime

    started = time.monotonic()
    with tritgguf.runtime.open(file, n_ctx=1024) as session:
        print(f"open: {time.monotonic() - started:.2f} s")
        generation = session.generate(list(range(300, 428)), max_tokens=64, temperature=1.0, seed=1)
        for _ in generation:
            pass
        stats = generation.stats
    print(f"prompt: {stats.n_prompt} tokens, {stats.n_prompt / stats.prompt_seconds:.1f} tokens/s")
    print(f"generation: {stats.n_generated} tokens, {stats.n_generated / stats.generation_seconds:.1f} tokens/s")


def convert(folder: Path, type_name: str) -> None:
    from tritgguf.converter import convert

    result = convert(folder, folder / "model.gguf", type=type_name, force=True)
    print(f"convert: {result.seconds:.1f} s, {result.plan.file_bytes:,} bytes")
    print("not exact:", [tensor.spec.name for tensor in result.plan.tensors if not tensor.exact])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", default="tq2_0")
    parser.add_argument("--step", choices=("write", "convert", "decode"), help="do one step in this process")
    arguments = parser.parse_args()
    if arguments.step is None:  # each step in a process of its own, so that its peak memory is its own
        for step in ("write", "convert", "decode"):
            command = [sys.executable, "-m", "tests.bench.bitnet_2b4t", str(arguments.folder), "--step", step]
            subprocess.run([*command, "--type", arguments.type], check=True)
        return
    if arguments.step == "write":
        if not (arguments.folder / "model.safetensors").exists():
            write_checkpoint(arguments.folder)
        return
    if arguments.step == "convert":
        convert(arguments.folder, arguments.type)
    else:
        decode(arguments.folder / "model.gguf")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.step}: peak memory {peak:,.0f} MB, pages of mapped files included")


if __name__ == "__main__":
    main()
