"""The training loop: the same for the ternary model and for the one with float weights beside it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vendor.demo_training.dialogues import Corpus
from vendor.demo_training.model import Decoder
from vendor.demo_training.rows import RowMaker

PRINT_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: `batch` rows of `length` tokens in each of `steps` steps."""

    steps: int
    seed: int
    batch: int = 8
    length: int = 512
    learning_rate: float = 4e-3
    embedding_rate: float = 4e-3
    warm_up: float = 0.03
    weight_decay: float = 0.1


def run(kind: str, recipe: Recipe, corpus: Corpus, folder: Path) -> Path:
    """Train in a process of its own, with half of the cores; return the file of the weights."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    rows = RowMaker(Tokenizer.from_file(str(folder / "tokenizer.json")), recipe.length, recipe.seed)
    weights = folder / f"{kind}.pt"
    torch.save(train(kind, recipe, rows.batches(corpus.train, corpus.short, recipe.batch)).state_dict(), weights)
    return weights


def train(kind: str, recipe: Recipe, batches: Iterator[tuple[np.ndarray, ...]]) -> Decoder:
    """Train a `ternary` or a `float` model from `recipe.seed`; Muon moves the matrices, AdamW the embedding and the norms."""
    torch.manual_seed(recipe.seed)
    model = Decoder(kind == "ternary").train()
    losses = torch.compile(model.losses)
    matrices = [parameter for name, parameter in model.named_parameters() if "_proj" in name]
    others = [parameter for name, parameter in model.named_parameters() if "_proj" not in name]
    optimizers = [
        torch.optim.Muon(
            matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [recipe.learning_rate, recipe.embedding_rate]
    begun = time.monotonic()
    recent: list[float] = []
    for step in range(recipe.steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate(step, recipe)
            if step > recipe.steps // 2 and optimizer is optimizers[0]:
                optimizer.param_groups[0]["weight_decay"] = 0.0  # BitNet's two stages
        ids, wanted = map(torch.from_numpy, next(batches))
        each = losses(ids, wanted)
        loss = each.sum() / (wanted >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % PRINT_EVERY == 0 or step + 1 == recipe.steps:
            speed = (step + 1) * ids.numel() / (time.monotonic() - begun)
            print(
                f"{kind}: step {step + 1}/{recipe.steps}  loss {np.mean(recent):.3f}  {speed:.0f} tokens/s", flush=True
            )
            recent.clear()
    return model.eval()


def rate(step: int, recipe: Recipe) -> float:
    """The part of the peak learning rate at this step: up in a line, then down in a line."""
    warm_up = max(1, round(recipe.warm_up * recipe.steps))
    return min((step + 1) / warm_up, (recipe.steps - step) / (recipe.steps - warm_up + 1))


@torch.no_grad()
def perplexity(losses: Callable[[Tensor, Tensor], Tensor], batches: Sequence[tuple[np.ndarray, ...]]) -> float:
    """exp of the mean negative log-likelihood of all wanted ids, computed in float32."""
    total, count = 0.0, 0
    for ids, wanted in batches:
        wanted_ids: Tensor = torch.from_numpy(wanted)
        total += losses(torch.from_numpy(ids), wanted_ids).sum().item()
        count += int((wanted_ids >= 0).sum())
    return math.exp(total / count)
