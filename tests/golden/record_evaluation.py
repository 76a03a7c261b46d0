"""Record what transformers makes of tests/evaluated_models.py: `python -m tests.golden.record_evaluation`."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer

from tests import evaluated_models, evaluation_oracle, gguf_weights

GOLDEN = Path(__file__).with_name("evaluation.json")
N_CTX, N_CHUNKS = 128, 8


def main() -> None:
    """Write the figures of the base, and of the noisy file against it."""
    text = evaluated_models.TEXT.read_bytes().decode().removesuffix("\n")
    tokenizer = Tokenizer.from_file(str(evaluated_models.MODEL / "tokenizer.json"))
    ids = evaluation_oracle.chunks(tokenizer.encode(text, add_special_tokens=False).ids, N_CTX, N_CHUNKS)
    config = json.loads((evaluated_models.MODEL / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        base = evaluated_models.base_file(Path(folder) / "base.gguf")
        noisy = evaluated_models.noisy_file(base, Path(folder) / "noisy.gguf")
        base_logits, logits = (
            evaluation_oracle.transformers_logits(config, gguf_weights.read(file), ids) for file in (base, noisy)
        )
    recorded = {
        "recorded_with": {name: version(name) for name in ("torch", "transformers")},
        "ctx": N_CTX,
        "chunks": N_CHUNKS,
        "base": evaluation_oracle.figures(ids, base_logits),
        "noisy": evaluation_oracle.figures(ids, logits, base_logits),
    }
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
    print(GOLDEN.read_text())


if __name__ == "__main__":
    main()
