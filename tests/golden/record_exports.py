"""Record the logits of quantized folders, as transformers loads them, as golden/exports.npz (see README.md).

python -m tests.golden.record_exports           record
python -m tests.golden.record_exports --check   compare a fresh recording with the file, change nothing

The folders are the converter's, made of one recipe's checkpoint; `AutoModelForCausalLM.from_pretrained` loads them.
For bitnet it needs the package accelerate.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the same code without a compiler

import numpy as np
import torch
import transformers

from tests import checkpoints
from tests.golden.record import load, logits
from tritgguf.converter import quantize

FILE = Path(__file__).resolve().parent / "exports.npz"
RECIPE = "llama-gqa"
SCHEMES = ("bitnet", "uniform-d1", "uniform-d2", "uniform-d3")


def recording() -> dict[str, Any]:
    """Return the arrays of the file; each set of logits is int16 times one float32 step."""
    with tempfile.TemporaryDirectory() as temporary:
        model = checkpoints.build(RECIPE, Path(temporary) / "model")
        arrays: dict[str, Any] = {"checkpoint_sha256": np.array(checkpoints.digest(model))}
        for scheme in SCHEMES:
            folder = quantize(model, Path(temporary) / scheme, scheme).out
            loaded = load(folder)
            if scheme == "bitnet":
                assert any(type(module).__name__ == "BitLinear" for module in loaded.modules())
            values = logits(loaded, checkpoints.token_ids(RECIPE))
            step = np.float32(np.abs(values).max() / 32767)
            arrays |= {f"{scheme}_step": step, f"{scheme}_int16": np.round(values / step).astype(np.int16)}
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    torch.set_num_threads(1)  # sums in one fixed order
    arrays = recording()
    if not check:
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        np.savez_compressed(FILE, **arrays, recorded_with=np.array(versions))
        print(f"{FILE.name}: {FILE.stat().st_size} bytes")
        return
    worst = 0.0
    with np.load(FILE) as file:
        for scheme in SCHEMES:
            old, new = (found[f"{scheme}_int16"] * found[f"{scheme}_step"] for found in (file, arrays))
            worst = max(worst, float(np.linalg.norm(old - new) / np.linalg.norm(new)))
    print(f"relative difference {worst:.1e}")
    sys.exit(worst > 1e-3)


if __name__ == "__main__":
    main()
