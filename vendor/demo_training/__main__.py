"""`python -m vendor.demo_training OUT_DIR`: train, save, and measure the demo model.

Needs the `demo-training` extra. Two models learn at the same time, each in a process of its own: the ternary one, and
one with float weights that is the same in all else. OUT_DIR gets the packed checkpoint, metrics.json and the log.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from vendor.demo_training import checkpoint, dialogues, tokenizer, training
from vendor.demo_training.model import CONFIG, Decoder
from vendor.demo_training.rows import RowMaker

EVALUATION_ROWS = 8


def main() -> None:
    """Do it all; about an hour on two cores."""
    parser = argparse.ArgumentParser(prog="python -m vendor.demo_training", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--masters", type=Path, help="also save the float32 weights that were trained, in this folder")
    arguments = parser.parse_args()
    begun = time.monotonic()
    recipe = training.Recipe(steps=arguments.steps, seed=arguments.seed)
    corpus = dialogues.load()
    text_tokenizer = tokenizer.train(turn for turns in corpus.train + corpus.short for turn in turns)
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(text_tokenizer, arguments.out_dir, CONFIG["max_position_embeddings"])
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        jobs = [
            processes.submit(training.run, kind, recipe, corpus, arguments.out_dir) for kind in ("ternary", "float")
        ]
        weights = [torch.load(job.result()) for job in jobs]
    model = Decoder(ternary=True).eval()
    model.load_state_dict(weights[0])
    token_ids = text_tokenizer.get_vocab()
    checkpoint.save_packed(model, arguments.out_dir, token_ids)
    if arguments.masters:
        checkpoint.save_masters(model, arguments.masters, token_ids)
        tokenizer.save(text_tokenizer, arguments.masters, CONFIG["max_position_embeddings"])
    metrics = measure(arguments.out_dir, weights, RowMaker(text_tokenizer, recipe.length, recipe.seed), corpus)
    metrics |= {"recipe": vars(recipe), "minutes": round((time.monotonic() - begun) / 60)}
    (arguments.out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))


def measure(folder: Path, weights: list[dict], rows: RowMaker, corpus: dialogues.Corpus) -> dict[str, object]:
    """Held-out perplexity of the saved checkpoint, by transformers, and of the two models, by our own code."""
    from transformers import AutoModelForCausalLM

    held_out = [piece for turns in corpus.held_out for piece in rows.pieces(turns, untidy=0)]
    parts = [held_out[start : start + EVALUATION_ROWS] for start in range(0, len(held_out), EVALUATION_ROWS)]
    batches = [rows.arrays(part) for part in parts]
    found: dict[str, object] = {}
    for kind, state in zip(("ternary", "float"), weights, strict=True):
        model = Decoder(kind == "ternary").eval()
        model.load_state_dict(state)
        found[f"{kind}_perplexity"] = training.perplexity(model.losses, batches)
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def losses(ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = saved(ids).logits
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")

    found["checkpoint_perplexity"] = training.perplexity(losses, batches)
    found["held_out_tokens"] = int(sum((wanted >= 0).sum() for _, wanted in batches))
    found["held_out_conversations"] = len(corpus.held_out)
    found["parameters"] = sum(state.numel() for state in weights[0].values())
    return found


if __name__ == "__main__":
    main()
