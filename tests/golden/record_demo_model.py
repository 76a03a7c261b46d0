"""Record what transformers makes of held-out rows with the demo model: `python -m tests.golden.record_demo_model`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from vendor.demo_training import dialogues
from vendor.demo_training.checkpoint import transformers_losses
from vendor.demo_training.model import CONFIG
from vendor.demo_training.rows import RowMaker

MODEL = Path(__file__).parents[2] / "vendor" / "demo-model"
GOLDEN = Path(__file__).with_name("demo_model.npz")
N_ROWS = 16


def main() -> None:
    """Write the rows' ids, which of them are judged, and the losses of those, in nats."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    rows = RowMaker(tokenizer, CONFIG["max_position_embeddings"], seed=0)
    held_out = [piece for turns in dialogues.load().held_out for piece in rows.pieces(turns, untidy=0)]
    ids, wanted = rows.arrays(held_out[:N_ROWS])
    losses = transformers_losses(MODEL)(torch.from_numpy(ids), torch.from_numpy(wanted)).numpy()
    judged = losses[wanted >= 0].astype(np.float32)
    np.savez_compressed(GOLDEN, ids=ids.astype(np.int16), wanted=wanted.astype(np.int16), losses=judged)
    print(f"{GOLDEN.name}: {len(judged)} tokens, perplexity {np.exp(judged.mean()):.3f}")


if __name__ == "__main__":
    main()
