"""Two small files to evaluate: the demo model in float32, and the same with noise on its linear layers.

In float32 no kernel rounds activations, so every machine computes nearly the same.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.gguf_edit import rewrite
from tests.paths import ROOT
from tritgguf.converter import convert

MODEL = ROOT / "vendor" / "demo-model"
TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"
NOISE = 0.3  # of a tensor's standard deviation


def base_file(out: Path) -> Path:
    return convert(MODEL, out, type="f32", embedding_type="f32", check=False).out


def noisy_file(base: Path, out: Path) -> Path:
    rng = np.random.default_rng(5)
    tensors = {
        tensor.name: (noisy(np.array(tensor.data), rng), tensor.tensor_type)
        for tensor in gguf.GGUFReader(base).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    return rewrite(base, out, tensors=tensors)


def noisy(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values + np.float32(NOISE) * values.std() * rng.standard_normal(values.shape, dtype=np.float32)
