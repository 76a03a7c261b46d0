"""What BitNet 2B-4T's activation costs per token: python -m tests.bench.relu2_overhead [--help]

One random TQ2_0 model of 2B-4T's shape decodes token by token in three contexts in turn: with the compiled callback,
with the plain Python one, and without any, which computes another model (SiLU) by the same graph. Taking turns at each
token, in changing order, keeps other work on the machine out of the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import gguf
import numpy as np

from tests import bitnet_model as bitnet
from tritgguf.converter.quant.codec import codec_named
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 2560, 6912, 30, 20, 5
WARM_UP = 4


def write(path: Path, n_vocab: int, n_layers: int) -> None:
    """Write a random model; each tensor's data are drawn when their turn to be written comes."""
    rng = np.random.default_rng(1)
    codec = codec_named("tq2_0")
    # The bytes of four codes of which none is the invalid 3.
    valid = np.array([byte for byte in range(256) if all(byte >> shift & 3 < 3 for shift in (0, 2, 4, 6))], np.uint8)
    writer = gguf.GGUFWriter(path, bitnet.ARCHITECTURES[0])
    for prefix in bitnet.ARCHITECTURES:
        bitnet.add_numbers(writer, prefix, HIDDEN, FFN, n_layers, HEADS, KV_HEADS, 4096)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"token{number}" for number in range(n_vocab)])
    writer.add_token_merges(["t o"])

    def ternary(n_rows: int, n_columns: int) -> np.ndarray:
        stored = valid[rng.integers(len(valid), size=(n_rows, n_columns // 256, 66), dtype=np.uint8)]
        stored[..., 64:] = np.array([1 / np.sqrt(n_columns)], "<f2").view(np.uint8)
        return stored.reshape(n_rows, -1)

    embedding = rng.standard_normal((n_vocab, HIDDEN), dtype=np.float32).astype(np.float16)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    for layer in range(n_layers):
        for name, shape in {**shapes, "ffn_down": (HIDDEN, FFN)}.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", ternary(*shape), raw_dtype=codec.ggml_type)
        for name, size in {
            "attn_norm": HIDDEN,
            "attn_sub_norm": HIDDEN,
            "ffn_norm": HIDDEN,
            "ffn_sub_norm": FFN,
        }.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def contexts(model: Model, n_ctx: int, n_threads: int) -> dict[str, Context]:
    """Return a context for each way to decode."""

    def new() -> Context:
        return Context(model, n_ctx=n_ctx, n_threads=n_threads, n_batch=512)

    found = {}
    model.needs_relu2 = False
    found["no callback"] = new()
    model.needs_relu2 = True
    found["compiled"] = new()
    with mock.patch.dict(os.environ, {"TRITGGUF_KERNELS": "numpy"}):
        found["plain"] = new()
    return found


def decode(ways: dict[str, Context], n_tokens: int) -> dict[str, list[float]]:
    """Return the seconds of each token by each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for position in range(WARM_UP + n_tokens):
        names = names[1:] + names[:1]
        for name in names:
            start = time.perf_counter()
            ways[name].decode([position % 1000], position)
            ways[name].logits()
            if position >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def read_prompt(ways: dict[str, Context], n_tokens: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a prompt by each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, context in ways.items():
            context.keep(0)
            start = time.perf_counter()
            context.decode(list(range(n_tokens)), 0)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]], n_tokens: int) -> None:
    baseline = seconds["no callback"]
    for name, values in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(values, baseline, strict=True))
        extra = statistics.median(one - other for one, other in zip(values, baseline, strict=True))
        median = statistics.median(values)
        print(
            f"{title}, {name}: {n_tokens / median:.2f} tokens/s, {1000 * median:.1f} ms, least {1000 * min(values):.1f}"
            f"; {ratio:.4f} of no callback, {1000 * extra:+.2f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="keep the model here, and use it again")
    parser.add_argument("--vocab", type=int, default=4096, help="2B-4T has 128256")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--prompt", type=int, default=200, help="0 leaves the prompt out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "random.gguf"
        if not path.exists():
            write(path, arguments.vocab, arguments.layers)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {arguments.threads} threads")
        with Model(path) as model:
            ways = contexts(model, max(512, WARM_UP + arguments.tokens), arguments.threads)
            report("decode", decode(ways, arguments.tokens), 1)
            if arguments.prompt:
                report(f"prompt of {arguments.prompt}", read_prompt(ways, arguments.prompt, 3), arguments.prompt)
            for context in ways.values():
                context.close()
        if importlib.util.find_spec("resource"):  # not on Windows
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            print(f"peak memory of this process, {len(ways)} contexts and the mapped file: {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
