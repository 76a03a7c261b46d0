"""`convert --budget`: a type for every tensor so that a file of at most so many bytes loses least, by measurement.

Each tensor is tried alone (trials.py) in one or two types; what it costs in the others follows from their squared
errors, with which the KL divergence grows about linearly (docs/quality.md, Bytes where they count).
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import Keys

from tritgguf import converter
from tritgguf.converter.calibration.basis import planned_in_its_basis
from tritgguf.converter.calibration.calibrate import require_fittable
from tritgguf.converter.calibration.documents import JSON, PARQUET
from tritgguf.converter.calibration.text import DEFAULT_TEXT, texts
from tritgguf.converter.core.parallel import n_threads, parallel
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.sizes import format_size, parse_size
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.reader import is_gguf
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.allocation import Option, allocate
from tritgguf.converter.planning.encoders import values
from tritgguf.converter.planning.file_plan import FilePlan, TensorPlan
from tritgguf.converter.planning.grid_types import TERNARY
from tritgguf.converter.planning.importance import require_effect
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.tensor_types import parse_tensor_type
from tritgguf.converter.planning.type_choices import TypeChoice, as_tensor_types, kinds, type_choices
from tritgguf.runtime.measure.chunks import Chunks, read_text
from tritgguf.runtime.measure.trials import Trials

# Chunks that are short and many rather than few and long: of more kinds of text, for the same time.
N_CTX, N_CHUNKS = 128, 4
# So many times the chunks for the embeddings and the output layer, which may be half of a small model.
MORE_CHUNKS = 4
# A second type is tried if its squared error is so many times smaller than the first one's, unless that is so small
# that what it costs is as small as the noise of the predictions.
APART, SMALL = 6.0, 1e-3
# A layer that gptq fits costs as much as this share of the squared error of the nearest of three codes, which is what
# its trial has. Where the numbers come from: docs/quality.md, How it measures.
LEFT_BY_GPTQ = {"tq1_0": 0.3, "tq2_0": 0.3, "q2_0": 0.18, "q2_k": 0.1}
_SAMPLES, _SAMPLE_VALUES = 8, 1 << 15  # of each tensor, for squared errors


def budget_bytes(text: str, n_weights: int) -> int:
    """Return a budget such as 2.3bpw, of a file of so many weights, or 1.2GB in bytes; UnsupportedError for others."""
    bits = re.fullmatch(r"(\d+(?:\.\d+)?)\s*bpw", text.strip().lower())
    if bits is not None:
        return int(float(bits[1]) * n_weights / 8)
    try:
        return parse_size(text)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"--budget {text}: expected bits per weight of the whole file, such as 2.3bpw, or a size such as 1.2GB"
        ) from error


@dataclass(frozen=True)
class Choosing:
    """What to choose from, and within how many bytes of the whole file; `least` is the smallest file's plan."""

    text: str
    source: Path
    lora: Path | None
    model: Model
    request: Request
    choices: Sequence[Sequence[TypeChoice]]
    n_bytes: int
    least: FilePlan
    threads: int | None


@dataclass(frozen=True)
class Measured:
    """What each choice takes and costs, tensor by tensor, and by how many trials on how many tokens that is known."""

    options: Sequence[Sequence[Option]]
    n_trials: int
    n_tokens: int


@dataclass(frozen=True)
class Chosen:
    """The choice: as texts for --tensor-type, its plan, and the sum of what the tensors cost alone, in nats.

    `weighs` tells whether the importance matrix weighs anything in it, `fits` whether gptq has a layer to fit, and
    `three_levels` whether some tensors have three levels in Q2_0, which has a fourth code.
    """

    text: str
    n_bytes: int
    tensor_types: tuple[str, ...]
    choices: tuple[TypeChoice, ...]
    plan: FilePlan
    predicted: float
    measured: Measured
    weighs: bool
    fits: bool
    three_levels: bool

    @property
    def lines(self) -> list[str]:
        """What was chosen and what it is expected to cost, in words."""
        bits = 8 * self.plan.file_bytes / _n_weights(self.plan)
        sizes = f"{format_size(self.plan.file_bytes)} of at most {format_size(self.n_bytes)}"
        trials = f"{self.measured.n_trials} trials on {self.measured.n_tokens:,} tokens"
        types = (
            f"{kind} {', '.join(f'{count} {name}' for name, count in some.items())}"
            for kind, some in kinds(self.choices).items()
        )
        gains = ", less what gptq usually gains" if self.fits else ""
        more = ["q2_0 has three levels here; --method four_levels uses all four of its codes in the same bytes"]
        return [
            f"--budget {self.text}: {sizes}, {bits:.2f} bits per weight of the whole file; predicted KL divergence "
            f"{self.predicted:.2g}, the sum of what {len(self.choices)} tensors cost alone{gains} ({trials})",
            f"types within the budget: {'; '.join(types)}",
            *(more if self.three_levels else []),
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "budget": self.text,
            "budget_bytes": self.n_bytes,
            "bits_per_weight": 8 * self.plan.file_bytes / _n_weights(self.plan),
            "predicted_kld": self.predicted,
            "trials": self.measured.n_trials,
            "kinds": kinds(self.choices),
            "tensor_types": list(self.tensor_types),
        }


def prepare(
    source: Path,
    request: Request,
    text: str,
    *,
    lora: Path | None,
    threads: int | None,
    progress: Progress | None = None,
) -> Choosing:
    """Return what to choose from; UnsupportedError where nothing can be, or the budget is less than the least size.

    With gptq, its layers are chosen by what it is expected to leave of what nearest codes cost. `progress` is called
    with "reading", the bytes of matrices done and their total.
    """
    model = open_model(source, lora=lora)
    if model.tensors is None or any(tensor.described for tensor in model.tensors.values()):
        raise UnsupportedError(f"{source}: holds no weights, which --budget measures; give the whole model")
    if model.only_floats is not None:
        raise UnsupportedError(f"{source.name}: {model.only_floats}; leave --budget out and ask for --type f16")
    if request.calibration is not None:
        require_fittable(model)
    choices = type_choices(model, request, n_threads(threads), progress)
    if request.imatrix is not None:
        require_effect(request.imatrix, [choice.plan for some in choices for choice in some], request.method)
    n_bytes = budget_bytes(text, sum(math.prod(spec.shape) for spec in model.specs))
    least = _planned(model, request, [some[0] for some in choices], threads)
    if least.file_bytes > n_bytes:
        bits = 8 * least.file_bytes / _n_weights(least)
        raise UnsupportedError(
            f"--budget {text}: is {format_size(n_bytes)}, but the file takes at least {least.file_bytes} bytes "
            f"({format_size(least.file_bytes)}, {math.ceil(1000 * bits) / 1000:g}bpw) with the types that --for "
            f"{request.target} and --method {request.method.name} allow here"
        )
    return Choosing(text, source, lora, model, request, choices, n_bytes, least, threads)


@contextlib.contextmanager
def opened_trials(choosing: Choosing, folder: Path | None, progress: Progress | None) -> Iterator[Trials]:
    """Yield the model loaded as F16, from a copy in `folder` (default: that for temporary files) until it is loaded."""
    metadata = choosing.model.metadata
    trained = metadata[f"{metadata[Keys.General.ARCHITECTURE].data}.context_length"].data
    n_ctx = min(N_CTX, trained) if isinstance(trained, int) else N_CTX
    with _as_f16(choosing, folder, progress) as file:
        trials = Trials(file, n_ctx, choosing.threads)
    with trials:
        yield trials


def measure(
    choosing: Choosing,
    trials: Trials,
    paths: Sequence[Path] = (),
    n_chunks: int | None = None,
    seed: int | None = None,
    *,
    progress: Progress | None = None,
    told: Callable[[str], None] = lambda _line: None,
) -> Measured:
    """Return what each choice of each tensor costs.

    `paths` are files of calibration text (default: that of the package), of which `n_chunks` (4) of 128 tokens are
    taken by `seed`. `progress` is called with "measuring", the tokens done and their total, `told`
    with a line for each file of which conversations are left out. SourceError where there is too little text.
    """
    n_chunks = n_chunks or N_CHUNKS
    chunks = _chunks(choosing.model, trials, paths, n_chunks, seed or 0, told)
    assert choosing.model.tensors is not None
    tensors = choosing.model.tensors

    def found(some: Sequence[TypeChoice]) -> list[float]:
        return [squared_error(choice.plan, tensors[choice.plan.spec.source]) for choice in some]

    errors = [*parallel(found, choosing.choices, n_threads(choosing.threads))]
    ends = [some[0].plan.spec.role != "linear" for some in choosing.choices]
    tried = [to_try(some, every=every) for some, every in zip(errors, ends, strict=True)]
    sizes = [len(chunks) if every else n_chunks for every in ends]
    n_evaluated = len(chunks) + sum(len(numbers) * size for numbers, size in zip(tried, sizes, strict=True))
    trials.begin(chunks, counted(progress, "measuring", chunks.n_ctx * n_evaluated))
    options = []
    left = partial(_left, choosing.request)
    for some, of_each, numbers, size in zip(choosing.choices, errors, tried, sizes, strict=True):
        measured = {
            of_each[number]: trials.divergence(some[number].plan, tensors[some[number].plan.spec.source], size)
            for number in numbers
        }
        options.append(
            [
                Option(choice.n_bytes, loss(left(choice) * error, measured))
                for choice, error in zip(some, of_each, strict=True)
            ]
        )
    return Measured(options, sum(map(len, tried)), n_chunks * chunks.n_ctx)


def _fits(request: Request, choice: TypeChoice) -> bool:
    """Whether gptq chooses the tensor's codes."""
    return choice.plan.encoder.rounds and request.calibrates(choice.plan.spec, choice.plan.codec)


def _left(request: Request, choice: TypeChoice) -> float:
    """Return the share of the squared error in a choice's trial that counts for the file."""
    return LEFT_BY_GPTQ[choice.plan.codec.name] if _fits(request, choice) else 1.0


def squared_error(plan: TensorPlan, source: SourceTensor) -> float:
    """Return the relative squared error of a tensor as its plan stores it, of rows spread over it; 0 if exact."""
    if plan.exact:
        return 0.0
    if plan.error is not None:
        return plan.error**2
    n_rows = math.prod(plan.spec.shape[:-1])
    wanted = max(1, _SAMPLE_VALUES // plan.spec.shape[-1])
    lost = norm = 0.0
    for start in np.unique(np.linspace(0, max(0, n_rows - wanted), _SAMPLES).astype(int)).tolist():
        rows = slice(start, min(start + wanted, n_rows))
        own = values(plan.spec, source, rows)
        lost += float(((plan.stored_values(source, rows) - own) ** 2).sum(dtype=np.float64))
        norm += float((own**2).sum(dtype=np.float64))
    return lost / norm if norm else 0.0


def to_try(errors: Sequence[float], *, every: bool = False) -> list[int]:
    """Return which options to measure: the one of the largest error, and one of an error well below, but not small.

    With `every`, all that have an error.
    """
    order = sorted((number for number, error in enumerate(errors) if error), key=lambda number: -errors[number])
    if every or not order:
        return order
    further = [number for number in order if SMALL <= errors[number] <= errors[order[0]] / APART]
    return [order[0], *further[:1]]


def loss(error: float, measured: Mapping[float, float]) -> float:
    """Return what an option of this squared error costs, given the costs of the measured ones by their errors.

    Between two of them by a power of the error, else in proportion to it.
    """
    if error == 0:
        return 0.0
    if error in measured:
        return measured[error]
    low, high = min(measured), max(measured)
    if low < error < high and measured[low] > 0 and measured[high] > 0:
        power = math.log(measured[high] / measured[low]) / math.log(high / low)
        return measured[low] * math.exp(power * math.log(error / low))
    nearest = low if error < low else high
    return measured[nearest] * error / nearest


def solve(choosing: Choosing, measured: Measured) -> Chosen:
    """Return the choice of least loss within the budget."""
    options = measured.options
    smallest = sum(some[0].n_bytes for some in choosing.choices)
    left = choosing.n_bytes - (choosing.least.file_bytes - smallest)
    while True:
        numbers = allocate(options, left)
        chosen = tuple(some[number] for some, number in zip(choosing.choices, numbers, strict=True))
        plan = _planned(choosing.model, choosing.request, chosen, choosing.threads)
        if plan.file_bytes <= choosing.n_bytes:
            break
        left -= plan.file_bytes - choosing.n_bytes  # the header or parts of the file took more than in the least one
    predicted = sum(some[number].loss for some, number in zip(options, numbers, strict=True))
    weighs = any(choice.plan.encoder.weighted for choice in chosen)
    request, types = choosing.request, tuple(as_tensor_types(chosen))
    fits = any(_fits(request, choice) for choice in chosen)
    plain = request.calibration is None and request.method.levels == TERNARY
    three = plain and any(choice.plan.encoder.rounds and choice.plan.codec.name == "q2_0" for choice in chosen)
    return Chosen(choosing.text, choosing.n_bytes, types, chosen, plan, predicted, measured, weighs, fits, three)


def _planned(model: Model, request: Request, chosen: Sequence[TypeChoice], threads: int | None) -> FilePlan:
    """Return the plan of the file with these choices, as convert makes it of their texts."""
    weighs = any(choice.plan.encoder.weighted for choice in chosen)
    types = (*request.tensor_types, *map(parse_tensor_type, as_tensor_types(chosen)))
    asked = replace(request, tensor_types=types, imatrix=request.imatrix if weighs else None)
    return planned_in_its_basis(model, asked, threads, None)


def _n_weights(plan: FilePlan) -> int:
    return sum(math.prod(tensor.spec.shape) for tensor in plan.tensors)


@contextlib.contextmanager
def _as_f16(choosing: Choosing, folder: Path | None, progress: Progress | None) -> Iterator[Path]:
    """Yield the source where it is an F16 file, else a copy that is."""
    tensors = choosing.model.tensors
    assert tensors is not None
    matrices = {tensors[some[0].plan.spec.source].dtype for some in choosing.choices}
    if is_gguf(choosing.source) and matrices == {"F16"}:
        yield choosing.source
        return
    with tempfile.TemporaryDirectory(prefix=".tritgguf-", dir=folder, ignore_cleanup_errors=True) as temporary:
        file = Path(temporary) / "f16.gguf"
        converter.convert(
            choosing.source,
            file,
            "f16",
            embedding_type="f16",
            output_type="f16" if any(spec.role == "output" for spec in choosing.model.specs) else None,
            lora=choosing.lora,
            check=False,
            threads=choosing.threads,
            progress=progress,
        )
        yield file


def _chunks(
    model: Model, trials: Trials, paths: Sequence[Path], n_chunks: int, seed: int, told: Callable[[str], None]
) -> Chunks:
    """Return chunks of the texts in an order that the seed gives, MORE_CHUNKS times `n_chunks` if there are so many.

    SourceError where there are fewer than `n_chunks`.
    """
    vocab, n_ctx, ids = trials.network.model.vocab, trials.network.n_ctx, []
    for path in paths or (DEFAULT_TEXT,):
        special = not {*JSON, PARQUET}.isdisjoint(path.suffixes)  # chat templates write control tokens
        for text in texts(path, model.metadata, told):
            if text.removesuffix("\n") == read_text(None):
                raise SourceError(
                    f"{path}: is the text that the verdict and `tritgguf eval` measure on: their figures would be too "
                    "good; give --calibration another file"
                )
            ids += vocab.tokenize(text, special=special)
    found = len(ids) // n_ctx
    if found < n_chunks:
        raise SourceError(
            f"{', '.join(map(str, paths)) or DEFAULT_TEXT}: has {found} chunks of {n_ctx} of this model's tokens; "
            f"expected {n_chunks}: give more text (--calibration), or ask for fewer chunks (--calibration-chunks)"
        )
    order = np.random.default_rng(seed).permutation(found)[: MORE_CHUNKS * n_chunks]
    return Chunks(np.array(ids[: found * n_ctx], np.int32).reshape(found, n_ctx)[order])
