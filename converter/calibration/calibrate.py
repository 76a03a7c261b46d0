"""`--method gptq`: a model whose linear layers have codes that were chosen for what the model computes on text."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tritgguf
from tritgguf.converter.calibration.basis import in_its_basis
from tritgguf.converter.calibration.kept import Kept, calibrated_tensor, digest, kept_beside
from tritgguf.converter.calibration.layers import BLOCKS, BlockError, Layer, layers_to_fit
from tritgguf.converter.calibration.text import Chunks, calibration_chunks
from tritgguf.converter.core.parallel import n_threads
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.calibration import GPTQ, Calibration
from tritgguf.converter.planning.file_plan import FilePlan

STAGE = "calibrating"
USUAL_GROUPS = 4  # of layers with the same inputs in a block: only progress goes by it


@contextlib.contextmanager
def calibrated(
    model: Model,
    plan: FilePlan,
    calibration: Calibration,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    told: Callable[[str], None] | None = None,
) -> Iterator[Model]:
    """Yield the model with gptq's codes in place of those linear layers that its plan would round.

    The codes lie in a folder beside `out` until the context ends without an error; a later run goes on with them.
    `told` gets a line for each block. Raises UnsupportedError where torch is missing or the model isn't one that gptq
    knows, SourceError where there is too little text.
    """
    layers = layers_to_fit(plan.tensors, calibration)
    turned = in_its_basis(model, plan.tensors, calibration)
    if not layers or model.tensors is None:
        yield model
        return
    tell = told or (lambda _line: None)
    chunks = _chunks(model, calibration, tell)
    with kept_beside(out, _identity(model, model.tensors, layers, calibration, chunks)) as kept:
        if kept.note:
            tell(kept.note)
        yield _fitted(turned, layers, calibration, chunks, kept, _Meter(model, layers, chunks, progress, tell), threads)


def require_fittable(model: Model) -> None:
    """Raise UnsupportedError where gptq lacks a folder with a tokenizer to compute from, or torch."""
    if not model.path.is_dir() or model.tokenizer is None:
        raise UnsupportedError(
            f"{model.path.name}: --method {GPTQ} computes with the model, so it needs a Hugging Face folder with a "
            "tokenizer; give that folder, or leave --method out"
        )
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise UnsupportedError(f'--method {GPTQ} needs {name}, which isn\'t installed: pip install "tritgguf[ptq]"')


def _chunks(model: Model, calibration: Calibration, tell: Callable[[str], None]) -> Chunks:
    require_fittable(model)
    assert model.tokenizer is not None
    return calibration_chunks(model.tokenizer, calibration, tell)


def _fitted(
    model: Model,
    layers: Sequence[Layer],
    calibration: Calibration,
    chunks: Chunks,
    kept: Kept,
    meter: _Meter,
    threads: int | None,
) -> Model:
    from tritgguf.converter.calibration.blocks import Decoder  # not at the top: torch takes seconds to load
    from tritgguf.converter.calibration.fit import fitted

    assert model.tensors is not None
    decoder = Decoder(model.path, model.specs, model.tensors)
    stored, errors = fitted(
        decoder, model.specs, layers, chunks, calibration, kept, meter.step, meter.ended, n_threads(threads)
    )
    tensors = dict(model.tensors)
    for layer in layers:
        name = layer.spec.source
        how = f"{layer.codes} chosen by {GPTQ}: {errors[layer.block]}"
        tensors[name] = calibrated_tensor(layer, stored[name], model.tensors[name], how)
    return replace(model, tensors=tensors, notes=[*model.notes, _note(layers, errors)])


def _note(layers: Sequence[Layer], errors: Sequence[BlockError]) -> str:
    counts = Counter(layer.codes for layer in layers)
    have = " and ".join(f"{number} linear layers have {codes}" for codes, number in counts.items())
    return (
        f"{have} chosen by {GPTQ}, which loses quality; at the last block, {errors[-1]}; tritgguf eval --against an "
        "F16 file of the model tells what is left"
    )


def _identity(
    model: Model,
    tensors: Mapping[str, SourceTensor],
    layers: Sequence[Layer],
    calibration: Calibration,
    chunks: Chunks,
) -> dict[str, Any]:
    """Return what codes depend on: version, weights, types, steps and calibration text."""
    return {
        "version": tritgguf.__version__,
        "config": hashlib.sha256((model.path / "config.json").read_bytes()).hexdigest(),
        "weights": digest(tensors),
        "types": {layer.spec.source: [layer.codec.name, layer.highest] for layer in layers},
        "without": sorted(calibration.without),
        "untie": calibration.untie,
        "chunks": [*chunks.shape, hashlib.sha256(chunks.tobytes()).hexdigest()],
    }


class _Meter:
    """Reports progress in bytes of the linear layers on disk, and a line for each block."""

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        chunks: Chunks,
        progress: Progress | None,
        tell: Callable[[str], None],
    ) -> None:
        assert model.tensors is not None
        n_blocks = len({spec.source.split(".")[2] for spec in model.specs if spec.source.startswith(BLOCKS)})
        sizes = [(layer.block, model.tensors[layer.spec.source].n_bytes) for layer in layers]
        self._bytes = [sum(size for block, size in sizes if block == number) for number in range(n_blocks)]
        self._steps = (USUAL_GROUPS + 1) * len(chunks)
        self._block, self._done, self._progress, self._tell = 0, 0, progress, tell

    def step(self, n_steps: int) -> None:
        self._done = min(self._done + n_steps, self._steps)
        self._show(self._done / self._steps)

    def ended(self, error: BlockError) -> None:
        self._tell(f"block {self._block + 1} of {len(self._bytes)}: {error}")
        self._block, self._done = self._block + 1, 0
        self._show(0)

    def _show(self, share: float) -> None:
        if self._progress is None:
            return
        done = sum(self._bytes[: self._block])
        if self._block < len(self._bytes):
            done += int(share * self._bytes[self._block])
        self._progress(STAGE, done, sum(self._bytes))
