"""Record transformers' logits of every recipe in checkpoints.py as golden/logits/<recipe>.npz (see README.md).

python -m tests.golden.record [recipe ...]      record (all)
python -m tests.golden.record --check           compare a fresh recording with the files, change nothing
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tests import checkpoints

FOLDER = Path(__file__).resolve().parent / "logits"
Floats = NDArray[np.float32]


def absmean(blocks: Floats) -> Floats:
    """Return (n, 256) blocks as scale * trit: scale = mean|w|, trit = clip(round(w / scale), -1, 1), scale in f16."""
    scales = np.abs(blocks).astype(np.float64).mean(axis=1, keepdims=True)
    trits = np.clip(np.round(blocks / np.where(scales > 0, scales, 1)), -1, 1)
    return (trits * scales.astype(np.float16).astype(np.float32)).astype(np.float32)


def mse(blocks: Floats) -> Floats:
    """Return (n, 256) blocks as scale * trit with the least squared error: the best prefix of |w| sorted downwards."""
    out = np.zeros_like(blocks)
    for block, target in zip(blocks, out, strict=True):
        order = sorted(range(len(block)), key=lambda index: -abs(block[index]))
        total, best, kept, scale = 0.0, -1.0, 0, 0.0
        for count, index in enumerate(order, start=1):
            total += abs(float(block[index]))
            if total * total / count > best:
                best, kept, scale = total * total / count, count, total / count
        for index in order[:kept]:
            target[index] = math.copysign(np.float16(scale), block[index]) if block[index] else 0.0
    return out


METHODS = {"absmean": absmean, "mse": mse}


def load(folder: Path) -> Any:
    """Return the model in float32; every tensor of the file must be used, and none be made up."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    unused = {key for key in report["unexpected_keys"] if not key.endswith("rotary_emb.inv_freq")}
    if unused or report["missing_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"{folder.name}: {report}")
    return model.eval()


def logits(model: Any, token_ids: list[int]) -> Floats:
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def ternarize(model: Any, method: str) -> None:
    """Replace every linear weight but the output's by what `method` makes of it."""
    for name, parameter in model.named_parameters():
        if checkpoints.is_linear(name):
            values = METHODS[method](parameter.detach().numpy().reshape(-1, 256))
            parameter.data = torch.from_numpy(values.reshape(parameter.shape))


def record(name: str, folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of one golden; each set of logits is int16 times one float32 step."""
    checkpoints.build(name, folder)
    token_ids = checkpoints.token_ids(name)
    references = {"weights": logits(load(folder), token_ids)}
    for method in checkpoints.RECIPES[name].methods:
        model = load(folder)
        ternarize(model, method)
        references[method] = logits(model, token_ids)
    arrays: dict[str, NDArray[Any]] = {
        "token_ids": np.array(token_ids, np.int32),
        "checkpoint_sha256": np.array(checkpoints.digest(folder)),
        "recorded_with": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    }
    for key, values in references.items():
        step = np.float32(np.abs(values).max() / 32767)
        arrays[f"{key}_step"] = step
        arrays[f"{key}_int16"] = np.round(values / step).astype(np.int16)
    return arrays


def difference(old: dict[str, NDArray[Any]], new: dict[str, NDArray[Any]]) -> float:
    """Return the largest relative difference of two recordings, infinity where they are not of the same thing."""
    if old.keys() != new.keys() or str(old["checkpoint_sha256"]) != str(new["checkpoint_sha256"]):
        return math.inf
    worst = 0.0
    for key in (key.removesuffix("_step") for key in new if key.endswith("_step")):
        before, after = ((arrays[f"{key}_int16"] * arrays[f"{key}_step"]) for arrays in (old, new))
        worst = max(worst, float(np.linalg.norm(before - after) / np.linalg.norm(after)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(checkpoints.RECIPES))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one fixed order
    FOLDER.mkdir(exist_ok=True)
    failed = False
    for name in arguments.recipes:
        with tempfile.TemporaryDirectory() as folder:
            arrays = record(name, Path(folder) / name)
        path = FOLDER / f"{name}.npz"
        if not arguments.check:
            np.savez_compressed(path, **arrays)
            print(f"{name}: {path.stat().st_size} bytes")
            continue
        with np.load(path) as file:
            worst = difference(dict(file), arrays)
        failed |= worst > 1e-5
        print(f"{name}: relative difference {worst:.1e}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
