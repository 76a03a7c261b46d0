"""A GGUF file of Qwen3-8B's shape in Prism ML's groups of 128: python -m tests.bench.foreign FOLDER

Writes the file (2.2 GB; needs 7 GB of disk), copies it with `cp` and converts it to Q2_0 in turn, page cache warm.
Keeps the figures as JSON. All files are deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from tests.bench import measure
from tests.bench.conversion import CONVERT, RESULTS
from tests.runtime.conftest import byte_characters

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD, VOCAB = 4096, 12288, 36, 32, 8, 128, 151936
NUMBER, GROUP, BYTES = 42, 128, 34
SETTLED_BYTES = 1 << 29
NAME = "qwen3-8b-groups-of-128"


def tensors() -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield names, shapes and type numbers."""
    kv, q = KV_HEADS * HEAD, HEADS * HEAD
    matrices = {
        "attn_q": (q, HIDDEN),
        "attn_k": (kv, HIDDEN),
        "attn_v": (kv, HIDDEN),
        "attn_output": (HIDDEN, q),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN, "attn_q_norm": HEAD, "attn_k_norm": HEAD}
    yield "token_embd.weight", (VOCAB, HIDDEN), NUMBER
    for layer in range(LAYERS):
        yield from ((f"blk.{layer}.{name}.weight", shape, NUMBER) for name, shape in matrices.items())
        yield from ((f"blk.{layer}.{name}.weight", (size,), 0) for name, size in norms.items())
    yield "output_norm.weight", (HIDDEN,), 0
    yield "output.weight", (VOCAB, HIDDEN), NUMBER


def n_bytes(shape: tuple[int, ...], number: int) -> int:
    return math.prod(shape) // GROUP * BYTES if number else 4 * math.prod(shape)


def keys(path: Path) -> bytes:
    """Return the file's keys as bytes, and their number before them."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_uint32("qwen3.block_count", LAYERS)
    writer.add_uint32("qwen3.context_length", 4096)
    writer.add_uint32("qwen3.embedding_length", HIDDEN)
    writer.add_uint32("qwen3.feed_forward_length", FFN)
    writer.add_uint32("qwen3.attention.head_count", HEADS)
    writer.add_uint32("qwen3.attention.head_count_kv", KV_HEADS)
    writer.add_uint32("qwen3.attention.key_length", HEAD)
    writer.add_uint32("qwen3.attention.value_length", HEAD)
    writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    words = byte_characters()
    writer.add_token_list([*words, *(f"word{number}" for number in range(VOCAB - len(words)))])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["w o", "r d"])
    writer.add_eos_token_id(10)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = path.read_bytes()
    path.unlink()
    return data[16:]


def write(path: Path) -> Path:
    """Write the file; its weights are slices of one block of random ones."""
    listed, offset, entries = list(tensors()), 0, b""
    for name, shape, number in listed:
        dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        entries += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape)) + dims
        entries += struct.pack("<IQ", number, offset)
        offset += -(-n_bytes(shape, number) // 32) * 32
    head = b"GGUF" + struct.pack("<IQ", 3, len(listed)) + keys(path) + entries
    rng = np.random.default_rng(8)
    blocks = np.empty((1 << 20, BYTES), np.uint8)
    blocks[:, :2] = rng.uniform(0.01, 0.05, (len(blocks), 1)).astype("<f2").view(np.uint8)
    digits = rng.integers(0, 3, (len(blocks), 32, 4), np.uint8)
    blocks[:, 2:] = (digits << np.array([0, 2, 4, 6], np.uint8)).sum(axis=-1, dtype=np.uint8)
    weights = blocks.tobytes()
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for _, shape, number in listed:
            size = n_bytes(shape, number)
            if not number:
                file.write(np.ones(shape, np.float32).tobytes())
            for start in range(0, size if number else 0, len(weights)):
                file.write(weights[: min(len(weights), size - start)])
            file.write(bytes(-size % 32))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    described = measure.machine()
    source, out, copy = (arguments.folder / name for name in ("in.gguf", "out.gguf", "copy.gguf"))
    try:
        write(source)
        commands = {"cp": ["cp", source, copy], "convert": [*CONVERT, source, out, "--type", "q2_0", "--for", "cuda"]}
        found: dict[str, list[measure.Run]] = {key: [] for key in commands}
        for number in range(arguments.runs + 1):
            for key, command in commands.items():
                for path in (out, copy):
                    path.unlink(missing_ok=True)
                measure.settle(SETTLED_BYTES)
                once = measure.run(command, out if key == "convert" else None)
                if number:
                    found[key].append(once)
                print(key, once, flush=True)
        ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(found["convert"], found["cp"], strict=True)]
        figures = {
            "file": NAME,
            "gigabytes": round(source.stat().st_size / 1e9, 2),
            "file_bytes": out.stat().st_size,
            "billion_weights": round(sum(math.prod(shape) for _, shape, _ in tensors()) / 1e9, 2),
            **{f"{key}_seconds": statistics.median(run.seconds for run in runs) for key, runs in found.items()},
            "times_cp": statistics.median(ratios),
            "runs": {key: [run.as_json() for run in runs] for key, runs in found.items()},
            "machine": described,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{NAME}.json").write_text(json.dumps(figures, indent=1) + "\n")
    finally:
        for path in (source, out, copy):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
