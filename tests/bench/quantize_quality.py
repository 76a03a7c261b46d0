"""What the schemes of `tritgguf quantize` cost: errors per kind of tensor, and KL divergence on a text. Needs torch.

python -m tests.bench.quantize_quality MODEL TEXT FOLDER [scheme ...] [--chunks 20]

MODEL is a Hugging Face folder of floats, TEXT a text file; the quantized folders are written into FOLDER. The protocol
is llama-perplexity's: chunks of 512 tokens, those at positions 256 to 510 are scored.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tritgguf.converter import form_named, quantize
from tritgguf.converter.export.run import Quantization

SCHEMES = ("uniform-d1", "uniform-d2", "uniform-d3")
CHUNK, FIRST = 512, 256


def log_probabilities(folder: Path, chunks: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the scored positions' log-probabilities of each chunk, float32 (255, n_vocab)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for chunk in chunks:
        with torch.no_grad():
            logits = model(chunk[None]).logits[0, FIRST : CHUNK - 1]
        yield torch.log_softmax(logits.float(), dim=-1)


def print_errors(result: Quantization) -> None:
    """Print the relative squared error per kind of tensor: over all layers, and the worst."""
    kinds = defaultdict(list)
    for fact in result.facts:
        if fact.coded:
            kinds[fact.name.split(".")[-2]].append(fact)
    for kind, facts in kinds.items():
        mean = math.fsum(f.squared_error for f in facts) / math.fsum(f.sum_of_squares for f in facts)
        worst = max(facts, key=lambda fact: fact.error)
        print(f"  {kind:10} {mean:.4g}  at most {worst.error:.4g} ({worst.name})")
    coded = [fact for fact in result.facts if fact.coded]
    print(f"  all {math.fsum(f.squared_error for f in coded) / math.fsum(f.sum_of_squares for f in coded):.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("schemes", nargs="*", default=SCHEMES)
    parser.add_argument("--chunks", type=int, default=20)
    arguments = parser.parse_args()
    model, out = arguments.model, arguments.folder
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(arguments.text.read_text()).ids
    chunks = torch.tensor(ids[: arguments.chunks * CHUNK]).reshape(-1, CHUNK)
    targets = chunks[:, FIRST + 1 :]
    base = None
    for number, found in enumerate(log_probabilities(model, chunks)):
        if base is None:
            base = np.memmap(out / "base.f32", np.float32, "w+", shape=(len(chunks), *found.shape))
        base[number] = found.numpy()
    assert base is not None
    losses = [-float(torch.from_numpy(base[i]).gather(1, targets[i][:, None]).mean()) for i in range(len(chunks))]
    print(f"{model.name}: {len(chunks)} chunks, perplexity {math.exp(np.mean(losses)):.2f}")
    for scheme in arguments.schemes:
        result = quantize(model, out / scheme, form_named(scheme, dequantized=True), force=True)
        print(f"{scheme}:")
        print_errors(result)
        divergences, same, losses = [], [], []
        for number, found in enumerate(log_probabilities(result.out, chunks)):
            reference = torch.from_numpy(base[number])
            divergences.append(float((reference.exp() * (reference - found)).sum(dim=1).mean()))
            same.append(float((reference.argmax(dim=1) == found.argmax(dim=1)).float().mean()))
            losses.append(-float(found.gather(1, targets[number][:, None]).mean()))
        spread = np.std(divergences) / math.sqrt(len(divergences))
        print(f"  perplexity {math.exp(np.mean(losses)):.2f}, KL divergence {np.mean(divergences):.4f} ± {spread:.4f}")
        print(f"  same first token {np.mean(same):.1%}")
    (out / "base.f32").unlink()


if __name__ == "__main__":
    main()
