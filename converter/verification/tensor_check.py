"""Does a stored tensor hold what its source computes with: exactly, as far as its type can, or not at all?

What a lossy type should hold isn't guessed from the size of an error. The encoders known here (this package's methods
and codecs, ggml's own as gguf has them) are tried, and where one of them made most rows, every other row is damage.
Only where none of them made the tensor does a bound decide: at R bits per weight a Gaussian tensor loses at least 2**-R
of its norm, real types lose less than four times that, and a tensor that has nothing to do with its source loses all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from tritgguf.converter.core.tensors import ByteArray, Float32Array, SourceTensor, row_chunks
from tritgguf.converter.errors import TensorError, TritggufError
from tritgguf.converter.gguf_io.reader import GgufTensor
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats, Encoder, encoder_for, values
from tritgguf.converter.quant.codec import AnyCodec, AnyGgmlType, codecs
from tritgguf.converter.quant.grids import find_grid
from tritgguf.converter.quant.known_grid import KnownGridCodec
from tritgguf.converter.quant.method import method_named, methods

Verdict = Literal["exact", "rounded", "wrong", "missing", "extra", "unreadable"]

UNRELATED = 0.95  # independent tensors of one size differ by sqrt(2) of their norm
ROUNDING = {"F16": (2.0**-11, 2.0**-25), "BF16": (2.0**-8, 0.0)}  # relative, absolute; other tools cut bf16 off


@dataclass(frozen=True)
class TensorCheck:
    """One tensor's verdict and why; the errors are |stored - source| / |source| and the largest difference.

    `encoder` names what made a rounded tensor, or most rows of a wrong one, where that is known.
    """

    name: str
    type: str
    verdict: Verdict
    reason: str
    relative_error: float | None = None
    max_error: float | None = None
    encoder: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in ("exact", "rounded")

    @property
    def line(self) -> str:
        """The check in one line."""
        error = "" if self.relative_error is None else f" (relative error {self.relative_error:.2g})"
        kind = f" ({self.type})" if self.type else ""
        return f"{self.name}{kind}: {self.reason}{error}"

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "verdict": self.verdict,
            "reason": self.reason,
            "relative_error": self.relative_error,
            "max_abs_error": self.max_error,
        }


@dataclass(frozen=True)
class Pair:
    """A stored tensor, with the factor that a `.scale` tensor multiplies it by, and what it should hold."""

    spec: TensorSpec
    source: SourceTensor | None
    stored: GgufTensor
    factor: float = 1.0

    def have(self, rows: slice) -> Float32Array:
        return self.stored.read(rows) * self.factor

    def want(self, rows: slice) -> Float32Array:
        """Return the effective weights in the order in which the graph wants them."""
        return values(self.spec, self.source, rows)

    def same_bytes(self) -> bool:
        """Whether a tensor of a GGUF source was passed through; some types can't be compared otherwise."""
        source = self.source
        if source is None or source.ggml_type != self.stored.ggml_type or self.factor != 1:
            return False
        return all(np.array_equal(source.read_bytes(rows), self.stored.read_bytes(rows)) for rows in self.chunks)

    @property
    def chunks(self) -> Iterator[slice]:
        return row_chunks(self.spec.shape)


@dataclass
class Differences:
    """Squared errors and norms per row, the largest difference, and whether rounding floats explains them."""

    row_errors: npt.NDArray[np.float64]
    row_norms: npt.NDArray[np.float64]
    largest: float
    rounded: dict[str, bool]

    @property
    def relative(self) -> float:
        norm = self.row_norms.sum()
        return float(math.sqrt(self.row_errors.sum() / norm)) if norm else float(self.row_errors.any())

    @property
    def bad_rows(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.row_errors)


def check_tensor(pair: Pair) -> TensorCheck:
    """Compare one tensor; a `wrong` one's reason says no more than how much differs."""
    name, kind, shape = pair.spec.name, pair.stored.dtype, pair.stored.shape
    if shape != pair.spec.shape:
        return TensorCheck(name, kind, "wrong", f"its shape is {shape}; expected {pair.spec.shape}")
    if pair.same_bytes():
        return TensorCheck(name, kind, "exact", "the source's bytes", 0.0, 0.0)
    try:
        found = differences(pair)
        if not found.row_errors.any():
            return TensorCheck(name, kind, "exact", "every value is the source's", 0.0, 0.0)
        verdict, reason, encoder = _explained(pair, found)
    except TritggufError as error:
        return TensorCheck(name, kind, "unreadable", str(error))
    return TensorCheck(name, kind, verdict, reason, found.relative, found.largest, encoder)


def differences(pair: Pair) -> Differences:
    """Compare every value."""
    row_errors, row_norms, largest = [], [], 0.0
    rounded = dict.fromkeys(ROUNDING, True)
    for rows in pair.chunks:
        want, have = pair.want(rows), pair.have(rows)
        delta = np.abs(have.astype(np.float64) - want)
        row_errors.append((delta**2).sum(axis=1))
        row_norms.append((want.astype(np.float64) ** 2).sum(axis=1))
        largest = max(largest, float(delta.max(initial=0)))
        for kind, (relative, absolute) in ROUNDING.items():
            rounded[kind] = rounded[kind] and bool((delta <= relative * np.abs(want) + absolute).all())
    return Differences(np.concatenate(row_errors), np.concatenate(row_norms), largest, rounded)


def _explained(pair: Pair, found: Differences) -> tuple[Verdict, str, str]:
    kind = pair.stored.dtype
    share = _share(found)
    if kind in ROUNDING:
        return ("rounded", f"rounded to {kind}", kind) if found.rounded[kind] else ("wrong", share, "")
    codec = codecs().get(kind.lower())
    if codec is not None and _should_be_exact(pair, codec):
        if found.rounded["F16"] and kind != "F32":
            return "rounded", "every code is the source's, its scale is rounded to fp16", "grid"
        return "wrong", f"{share}, though {kind} can hold the source's values exactly", ""
    name, n_equal = _encoder_of(pair, codec)
    n_rows = len(found.row_errors)
    if n_equal == n_rows:
        return "rounded", f"rounded as {name} does", name
    if n_equal > n_rows // 2:
        return "wrong", f"{n_rows - n_equal} of {n_rows} rows aren't what {name} makes of the source", name
    bound = type_bound(pair.stored.ggml_type)
    if found.relative > bound or (bound < 1 / 3 and _lost_rows(found, bound)):
        return "wrong", f"{share}; {kind} alone can't lose that much", ""
    return "rounded", f"as near as {kind} can be expected to be", ""


def _share(found: Differences) -> str:
    n_rows = len(found.row_errors)
    if n_rows == 1:
        return "its values differ"
    return f"{len(found.bad_rows)} of {n_rows} rows differ, the first is row {found.bad_rows[0]}"


def _should_be_exact(pair: Pair, codec: AnyCodec) -> bool:
    if codec.name == "f32":
        return True
    if not codec.ternary or pair.source is None:
        return False
    grid = find_grid(pair.source)
    return grid is not None and grid.fits(codec.block)


def _lost_rows(found: Differences, bound: float) -> bool:
    """Whether a row that isn't negligible is far beyond the bound."""
    matters = found.row_norms > 1e-4 * found.row_norms.mean()
    return bool((found.row_errors > (3 * bound) ** 2 * found.row_norms)[matters].any())


def type_bound(kind: GGMLQuantizationType) -> float:
    """Return the largest relative error that a tensor of that type is believed to owe to its type.

    >>> round(type_bound(GGMLQuantizationType.Q8_0), 4)
    0.011
    """
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return float(min(UNRELATED, 4 * 2.0 ** (-8 * block_bytes / block)))


@dataclass(frozen=True)
class _AsGgml(Encoder):
    """Values rounded as ggml's own quantizers do, of which the gguf package has some."""

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        return quants.quantize(values(self.spec, source, rows), self.codec.ggml_type)


def _encoders(pair: Pair, codec: AnyCodec | None) -> dict[str, Encoder]:
    """Return what may have made the stored tensor."""
    spec, found = pair.spec, dict[str, Encoder]()
    if codec is not None:
        names = methods() if codec.ternary else {codec.name: method_named("mse")}  # floats need no method
        found = {name: encoder_for(spec, codec, method) for name, method in names.items()}
        for levels in codec.grid_levels:
            found[f"{codec.name} for {levels} levels"] = AsFloats(spec, KnownGridCodec(codec, levels))
    return {**found, "ggml": _AsGgml(spec, AnyGgmlType(pair.stored.ggml_type))}


def _encoder_of(pair: Pair, codec: AnyCodec | None) -> tuple[str, int]:
    """Return the encoder that made most rows of the first chunk, and how many rows of the whole tensor it made."""
    known = _encoders(pair, codec)
    first = next(pair.chunks)
    counts = {name: _n_equal(pair, first, encoder) for name, encoder in known.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best] == 0:
        return best, 0
    return best, sum(_n_equal(pair, rows, known[best]) for rows in pair.chunks)


def _n_equal(pair: Pair, rows: slice, encoder: Encoder) -> int:
    """Return how many rows hold the values that the encoder makes of the source."""
    have = pair.have(rows)
    try:
        with np.errstate(all="ignore"):
            made = encoder.codec.decode(encoder.encode(pair.source, rows))
    except (NotImplementedError, TensorError):
        return 0
    return int((made.reshape(have.shape) == have).all(axis=1).sum())
