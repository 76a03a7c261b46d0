"""How much memory `tritgguf eval` takes with a large vocabulary: python -m tests.bench.eval_memory

The model is small and random, so that nearly all of the memory is for logits and log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from tests.bench.measure import run

HIDDEN, FFN, HEADS = 64, 128, 1


def write(path: Path, n_vocab: int, seed: int) -> Path:
    """Write a Llama of one layer, each token of which is a byte or a word that no text has."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"word{number}" for number in range(n_vocab - len(tokens))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (n_vocab - len(kinds)))
    shapes = {"token_embd": (n_vocab, HIDDEN), "output": (n_vocab, HIDDEN)}
    shapes |= {f"blk.0.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (FFN, HIDDEN), "blk.0.ffn_up": (FFN, HIDDEN), "blk.0.ffn_down": (HIDDEN, FFN)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, dtype=np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936, help="Qwen2.5's")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 6])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, other = (write(Path(folder) / f"{seed}.gguf", arguments.vocab, seed) for seed in (1, 2))
        command = [sys.executable, "-m", "tritgguf", "eval", other, "--threads", 1]
        for n_chunks in arguments.chunks:
            for against in ([], ["--against", base]):
                found = run([*command, *against, "--chunks", n_chunks])
                print(json.dumps({"chunks": n_chunks, "files": 1 + bool(against), **found.as_json()}), flush=True)


if __name__ == "__main__":
    main()
