"""What the output layer's type costs: a GGUF file's speed and predictions with that layer in F16, Q8_0 and Q6_K.

A token that is generated reads the output layer once, like all others; in a small model with a large vocabulary it may
be half of the file. Only that layer differs between the copies that are measured.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritgguf.converter.conversion.pipeline import write_model
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import EngineError, UnsupportedError
from tritgguf.converter.gguf_io.reader import is_gguf
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.file_plan import FilePlan
from tritgguf.converter.planning.other_output import output_layer, with_output_type
from tritgguf.converter.planning.request import Request
from tritgguf.converter.quant.codec import float_codec
from tritgguf.runtime.engine.placement import ANYWHERE, Placement
from tritgguf.runtime.measure.bench import bench
from tritgguf.runtime.measure.evaluation import evaluate

TYPES = ("f16", "q8_0", "q6_k")  # the first is what the others are compared with
N_CHUNKS = 8
# Predictions hardly change: a whole model in Q6_K, which is taken for as good as F16, costs about as much.
MOST_KLD = 0.01
WORTH_CONVERTING = 1.03  # another type than the file's must be at least this many times as fast


@dataclass(frozen=True)
class Head:
    """The file with its output layer in one type.

    `kld` is the mean KL divergence of its predictions from those with F16, and its standard error; None of F16 itself.
    """

    type: str
    file_bytes: int
    rates: Sequence[float]
    kld: tuple[float, float] | None
    is_own: bool

    @property
    def median(self) -> float:
        """Generated tokens per second."""
        return statistics.median(self.rates)

    def as_json(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "own": self.is_own,
            "file_bytes": self.file_bytes,
            "tokens_per_second": self.median,
            "samples": list(self.rates),
            "kld": None if self.kld is None else self.kld[0],
            "kld_error": None if self.kld is None else self.kld[1],
        }


@dataclass(frozen=True)
class Heads:
    """The file with each type, F16 first; which tensor was changed, and how many threads generated.

    `others` is how many cores other programs kept busy meanwhile, where the system tells it.
    """

    path: Path
    tensor: str
    threads: int
    heads: tuple[Head, ...]
    others: float | None

    @property
    def own(self) -> Head:
        return next(head for head in self.heads if head.is_own)

    @property
    def best(self) -> Head:
        """The fastest head that hardly changes predictions; the file's own unless another is worth a conversion."""
        good = [head for head in self.heads if head.kld is None or head.kld[0] <= MOST_KLD]
        best = max(good, key=lambda head: head.median)
        return best if best.median >= WORTH_CONVERTING * self.own.median else self.own

    @property
    def advice(self) -> str:
        """Which type to take, in one line."""
        best, own = self.best, self.own
        if best is own:
            return (
                f"leave {self.tensor} as it is: no other type is {WORTH_CONVERTING - 1:.0%} faster than {own.type} "
                f"at a KL divergence of {MOST_KLD} or less"
            )
        n_bytes = best.file_bytes - own.file_bytes
        size = f"{format_size(abs(n_bytes))} {'more' if n_bytes > 0 else 'less'}"
        cost = "" if best.kld is None else f", costs a KL divergence of {best.kld[0]:.5f}"
        option = "--output-type" if self.tensor == "output.weight" else "--embedding-type"
        return (
            f"{best.type} generates {best.median / own.median:.2f} times as fast as {own.type}, takes {size}{cost}: "
            f"tritgguf convert {self.path} OUT.gguf {option} {best.type}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "tensor": self.tensor,
            "threads": self.threads,
            "heads": [head.as_json() for head in self.heads],
            "advice": self.advice,
            "cores_busy_with_others": self.others,
        }


def measure_heads(
    path: Path,
    *,
    generate: int = 64,
    threads: int | None = None,
    repeat: int = 5,
    placement: Placement = ANYWHERE,
    progress: Progress | None = None,
) -> Heads:
    """Measure generation of `generate` tokens, and the KL divergence on the text that comes with the package.

    The copies lie in the system's folder for temporary files (TMPDIR), and are removed at the end. A type that the
    layer's rows don't fit is left out; the file's own type is there too. Raises TritggufError.
    """
    with _files(path, progress) as (own, tensor, files):
        found = bench(
            list(files.values()),
            prompt_tokens=(),
            generate=(generate,),
            threads=None if threads is None else (threads,),
            repeat=repeat,
            placement=placement,
            progress=progress,
        )
        base, *others = files.values()
        evaluation = evaluate(
            others, against=base, n_chunks=N_CHUNKS, threads=threads, placement=placement, progress=progress
        )
    divergences = [None, *(file.figures.divergence for file in evaluation.files)]
    heads = [
        Head(name, series.size.file_bytes, series.rates, (d.kld_mean, d.kld_error) if d else None, name == own)
        for name, series, d in zip(files, found.series, divergences, strict=True)
    ]
    return Heads(path, tensor, found.series[0].threads, tuple(heads), found.others)


@contextlib.contextmanager
def _files(path: Path, progress: Progress | None) -> Iterator[tuple[str, str, Mapping[str, Path]]]:
    """Yield the output layer's own type, its name, and a file for each type; only the own one isn't a copy."""
    if not is_gguf(path):
        raise UnsupportedError(f"{path} isn't a GGUF file: convert it first")
    model = open_model(path, load_tokenizer=False)
    layer = output_layer(model)
    own = model.tensors[layer.source].dtype.lower() if model.tensors else ""
    plans: dict[str, FilePlan | None] = {}
    for name in (*TYPES, *([] if own in TYPES else [own])):
        if name == own:
            plans[name] = None
        elif layer.shape[-1] % float_codec(name).block == 0:
            plans[name] = with_output_type(model, float_codec(name))
    with tempfile.TemporaryDirectory(prefix="tritgguf-") as folder:
        _require_space(Path(folder), plans)
        files = {
            name: path if plan is None else _written(model, plan, Path(folder) / f"{name}.gguf", progress)
            for name, plan in plans.items()
        }
        yield own, layer.name, files


def _require_space(folder: Path, plans: Mapping[str, FilePlan | None]) -> None:
    needed, free = sum(plan.file_bytes for plan in plans.values() if plan), shutil.disk_usage(folder).free
    if needed > free:
        raise EngineError(
            f"copies of {format_size(needed)} don't fit into {folder.parent}, which has {format_size(free)} free; set "
            "TMPDIR to a folder with more"
        )


def _written(model: Model, plan: FilePlan, target: Path, progress: Progress | None) -> Path:
    request = Request.named("f16", "mse")
    return write_model(model, target, request, check=None, progress=progress, file_plan=plan).out
