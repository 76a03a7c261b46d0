"""What llama-imatrix and llama-quantize were recorded on, and their recorded files (tests/golden/README.md)."""

from __future__ import annotations

import lzma
from pathlib import Path

from gguf import GGMLQuantizationType

from tests import checkpoints, evaluated_models
from tests.paths import GOLDEN
from tritgguf.converter import convert

RECORDED = GOLDEN / "imatrix"
# Chunks of each model's text: tokens of one, and how many.
CHUNKS = {"demo": (128, 4), "experts": (64, 3)}
# The tensor of which the first rows of each matrix are recorded as llama-quantize stores them.
QUANTIZED = {"demo": "blk.5.ffn_down.weight", "experts": "blk.1.ffn_down_exps.weight"}
QUANTIZED_TYPE, N_ROWS = GGMLQuantizationType.Q2_K, 16
WORDS = ("what", "is", "that", "you", "say", "now", "hello", "world", "and", "the")


def text(name: str, folder: Path) -> Path:
    """Return the text on which a model's importance is computed."""
    if name == "demo":
        return evaluated_models.TEXT
    written = folder / "words.txt"
    written.write_text(" ".join(WORDS[(7 * number * number + number // 3) % len(WORDS)] for number in range(600)))
    return written


def model(name: str, folder: Path) -> Path:
    """Make a model in float32: the demo model with noise on its layers, or a mixture of experts."""
    if name == "demo":
        return evaluated_models.noisy_file(evaluated_models.base_file(folder / "base.gguf"), folder / "demo.gguf")
    built = checkpoints.build("mixtral", folder / "experts")
    return convert(built, folder / "experts.gguf", type="f32", embedding_type="f32", output_type="f32", check=False).out


def recorded(file: str, folder: Path) -> Path:
    """Unpack a recorded file, such as demo.gguf or experts.dat, and return where."""
    unpacked = folder / f"recorded-{file}"
    unpacked.write_bytes(lzma.decompress((RECORDED / f"{file}.xz").read_bytes()))
    return unpacked
