"""How far each tensor of a GGUF file is from its source: |stored - source| / |source| over every value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tritgguf.converter.core.parallel import n_threads, parallel
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.open import open_model
from tritgguf.converter.verification.tensor_check import Pair, differences
from tritgguf.converter.verification.verification import paired


def relative_errors(
    model: Path,
    out: Path,
    *,
    lora: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Mapping[str, float]:
    """Return the error of each tensor that the GGUF file `out` and the model it was made from both have, by name.

    0 means that every value is the source's. `lora` is the adapter that was merged into the model. `threads` is one per
    core by default; `progress` is called with "comparing", the bytes done and the total bytes. Raises TritggufError
    where a value can't be read, or where the file isn't of this model: a shape differs, or no tensor is in both.
    """
    stored = read_gguf(out).stock_tensors()
    opened = open_model(model, load_tokenizer=False, lora=lora)
    if opened.tensors is None:
        raise SourceError(f"{model} holds no weights: there is nothing to compare {out.name} with")
    pairs, _ = paired(opened, stored)
    if not pairs:
        raise SourceError(f"{model} has none of the tensors of {out.name}: name the model that the file was made from")
    report = counted(progress, "comparing", sum(pair.stored.n_bytes for pair in pairs))
    found: dict[str, float] = {}
    for pair, error in zip(pairs, parallel(_error, pairs, n_threads(threads)), strict=True):
        found[pair.spec.name] = error
        report(pair.stored.n_bytes)
    return found


def _error(pair: Pair) -> float:
    if pair.stored.shape != pair.spec.shape:
        raise SourceError(
            f"{pair.stored.file.name}: the shape of {pair.spec.name} is {pair.stored.shape}, the model's is "
            f"{pair.spec.shape}: name the model that the file was made from"
        )
    return 0.0 if pair.same_bytes() else differences(pair).relative
