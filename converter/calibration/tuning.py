"""`--tune STEPS`: after gptq, tune scales, norms and biases until the model predicts what the float model does."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tritgguf
from tritgguf.converter.calibration.kept import digest, kept_beside
from tritgguf.converter.calibration.text import Chunks, tuning_chunks
from tritgguf.converter.calibration.tuned_model import as_fitted, originals
from tritgguf.converter.core.parallel import n_threads
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.planning.file_plan import FilePlan


@contextlib.contextmanager
def tuned(
    model: Model,
    plan: FilePlan,
    calibration: Calibration,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    told: Callable[[str], None] | None = None,
) -> Iterator[Model]:
    """Yield the model that gptq fitted, with tuned scales, norms and biases where held-out text is predicted better.

    `plan` is that model's. What is done lies in a folder beside `out` until the context ends without an error; a later
    run goes on with it. `told` gets a line now and then.
    """
    tensors = model.tensors or {}
    if all(tensor is tensors[name] for name, tensor in originals(tensors).items()):
        yield as_fitted(model, "nothing was fitted, so nothing is tuned")
        return
    assert model.tokenizer is not None
    assert calibration.tune is not None
    tell = told or (lambda _line: None)
    chunks, held_out = tuning_chunks(model.tokenizer, calibration)
    with kept_beside(out, _identity(model, plan, calibration, chunks, held_out), "tune", "steps of tuning") as kept:
        if kept.note:
            tell(kept.note)
        from tritgguf.converter.calibration.tune import better  # not at the top: torch takes seconds to load

        yield better(
            model,
            plan,
            calibration.tune,
            calibration.seed,
            (chunks, held_out),
            kept,
            tell,
            progress,
            n_threads(threads),
        )


def _identity(
    model: Model, plan: FilePlan, calibration: Calibration, chunks: Chunks, held_out: Chunks
) -> dict[str, Any]:
    """Return what the tuned values depend on: version, weights, codes, types, steps and text."""
    assert model.tensors is not None
    floats = originals(model.tensors)
    fitted = {name: tensor for name, tensor in model.tensors.items() if tensor is not floats[name]}
    return {
        "version": tritgguf.__version__,
        "config": hashlib.sha256((model.path / "config.json").read_bytes()).hexdigest(),
        "weights": digest(floats),
        "fitted": digest(fitted),
        "types": {tensor.spec.name: tensor.codec.name for tensor in plan.tensors},
        "steps": calibration.tune,
        "seed": calibration.seed,
        "chunks": [[*text.shape, hashlib.sha256(text.tobytes()).hexdigest()] for text in (chunks, held_out)],
    }
