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
from tempfile import TemporaryDirectory

import torch

from vendor.demo_training import checkpoint, dialogues, tokenizer, training
from vendor.demo_training.model import CONFIG, Decoder
from vendor.demo_training.rows import RowMaker

EVALUATION_ROWS = 8


def main() -> None:
    """Do it all; about an hour and a half on two cores."""
    parser = argparse.ArgumentParser(prog="python -m vendor.demo_training", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--latent", type=Path, help="also save the float32 weights that were trained, in this folder")
    arguments = parser.parse_args()
    begun = time.monotonic()
    recipe = training.Recipe(steps=arguments.steps, seed=arguments.seed)
    corpus = dialogues.load()
    text_tokenizer = tokenizer.train(turn for turns in corpus.train + corpus.short for turn in turns)
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(text_tokenizer, arguments.out_dir, CONFIG["max_position_embeddings"])
    tokenizer_json = arguments.out_dir / "tokenizer.json"
    with TemporaryDirectory() as scratch, ProcessPoolExecutor(2, get_context("spawn")) as processes:
        files = [Path(scratch) / f"{kind}.pt" for kind in ("ternary", "float")]
        jobs = [processes.submit(training.run, file, recipe, corpus, tokenizer_json) for file in files]
        weights = [torch.load(file) for file, job in zip(files, jobs, strict=True) if job.result() is None]
    model = Decoder(ternary=True).eval()
    model.load_state_dict(weights[0])
    token_ids = text_tokenizer.get_vocab()
    checkpoint.save_packed(model, arguments.out_dir, token_ids)
    if arguments.latent:
        checkpoint.save_latent_weights(model, arguments.latent, token_ids)
        tokenizer.save(text_tokenizer, arguments.latent, CONFIG["max_position_embeddings"])
    metrics = measure(arguments.out_dir, weights, RowMaker(text_tokenizer, recipe.length, recipe.seed), corpus)
    metrics |= {"recipe": vars(recipe), "minutes": round((time.monotonic() - begun) / 60)}
    (arguments.out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))


def measure(folder: Path, weights: list[dict], rows: RowMaker, corpus: dialogues.Corpus) -> dict[str, object]:
    """Held-out perplexity of the saved checkpoint, by transformers, and of the two models, by our own code."""
    held_out = [piece for turns in corpus.held_out for piece in rows.pieces(turns, untidy=0)]
    parts = [held_out[start : start + EVALUATION_ROWS] for start in range(0, len(held_out), EVALUATION_ROWS)]
    batches = [rows.arrays(part) for part in parts]
    found: dict[str, object] = {}
    for kind, state in zip(("ternary", "float"), weights, strict=True):
        model = Decoder(kind == "ternary").eval()
        model.load_state_dict(state)
        found[f"{kind}_perplexity"] = training.perplexity(model.losses, batches)
    found["checkpoint_perplexity"] = training.perplexity(checkpoint.transformers_losses(folder), batches)
    found["held_out_tokens"] = int(sum((wanted >= 0).sum() for _, wanted in batches))
    found["held_out_conversations"] = len(corpus.held_out)
    found["parameters"] = sum(state.numel() for state in weights[0].values())
    return found


if __name__ == "__main__":
    main()
