"""Check whether a stored tensor holds its source's effective weights: exactly, rounded to its type, or not at all.

For a lossy type, the known encoders (this package's methods and codecs, and ggml's quantizers in gguf) encode the
source again. If one of them reproduces most rows, each other row is damaged. If none does, an error bound decides: at R
bits per weight a Gaussian tensor loses at least 2**-R of its norm, real types lose less than four times that, and a
tensor unrelated to its source loses all of it.
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
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor
from tritgguf.converter.gguf_io.imatrix import Imatrix
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.encoders import AsFloats, Encoder, Rounded, encoder_for, values
from tritgguf.converter.quant.codec import AnyCodec, AnyGgmlType, TernaryCodec, codecs
from tritgguf.converter.quant.grids import find_grid
from tritgguf.converter.quant.known_grid import KnownGridCodec
from tritgguf.converter.quant.method import Method, method_named, methods

Verdict = Literal["exact", "rounded", "wrong", "missing", "extra", "unreadable"]

UNRELATED = 0.95  # independent tensors differ by more than the larger one's norm
COARSE = 1 / 2  # relative error from which on a type's values may be larger than the source's, but at most
GROWTH = 1.5  # times as large: what gptq corrects for the errors of earlier layers makes them 1.25 times as large
ROUNDING = {"F16": (2.0**-11, 2.0**-25), "BF16": (2.0**-8, 0.0)}  # relative, absolute; some tools truncate to bf16


@dataclass(frozen=True)
class TensorCheck:
    """One tensor's verdict and the reason.

    `relative_error` is |stored - source| / |source|, `max_error` the largest difference; both are None if not computed.
    `encoder` names the encoder of a rounded tensor, or of most rows of a wrong one, if it is known.
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
        """The check as one line for the user."""
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
    """A stored tensor and its source; its matrices are multiplied by `factors`, (n_matrices,), its `.scale` tensor.

    `imatrix` is the importance matrix by which a method may have weighed errors.
    """

    spec: TensorSpec
    source: SourceTensor | None
    stored: GgufTensor
    factors: Float32Array | None = None
    imatrix: Imatrix | None = None

    def have(self, rows: slice) -> Float32Array:
        values = self.stored.read(rows)
        if self.factors is None:
            return values
        n_rows = self.spec.shape[-2]
        return values * self.factors[np.arange(rows.start, rows.start + len(values)) // n_rows, None]

    def want(self, rows: slice) -> Float32Array:
        """Return the source's effective weights in the order that the graph needs, float32 (n_rows, n_columns)."""
        return values(self.spec, self.source, rows)

    def same_bytes(self) -> bool:
        """Whether the bytes of a GGUF source were passed through; some types can be compared only this way."""
        source = self.source
        if source is None or source.ggml_type != self.stored.ggml_type or self.factors is not None:
            return False
        return all(np.array_equal(source.read_bytes(rows), self.stored.read_bytes(rows)) for rows in self.chunks)

    @property
    def chunks(self) -> Iterator[slice]:
        return row_chunks(self.spec.shape)


@dataclass
class Differences:
    """Squared errors and norms per row, the largest difference, and whether rounding to a float type explains them.

    `stored_norm` is the squared norm of all stored values.
    """

    row_errors: npt.NDArray[np.float64]
    row_norms: npt.NDArray[np.float64]
    stored_norm: float
    largest: float
    rounded: dict[str, bool]

    @property
    def relative(self) -> float:
        norm = self.row_norms.sum()
        return float(math.sqrt(self.row_errors.sum() / norm)) if norm else float(self.row_errors.any())

    @property
    def apart(self) -> float:
        """The error relative to the larger of both norms, at least 1 if both have nothing to do with each other."""
        norm = max(self.row_norms.sum(), self.stored_norm)
        return float(math.sqrt(self.row_errors.sum() / norm)) if norm else 0.0

    @property
    def growth(self) -> float:
        """How many times as large as the source's values the stored ones are."""
        if not self.stored_norm:
            return 0.0
        norm = self.row_norms.sum()
        return float(math.sqrt(self.stored_norm / norm)) if norm else math.inf

    @property
    def bad_rows(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.row_errors)


def check_tensor(pair: Pair) -> TensorCheck:
    """Compare one tensor; the reason of a wrong one tells only how much differs, `diagnosis` may tell why."""
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
    row_errors, row_norms, stored_norm, largest = [], [], 0.0, 0.0
    rounded = dict.fromkeys(ROUNDING, True)
    for rows in pair.chunks:
        want, have = pair.want(rows), pair.have(rows)
        delta = np.abs(have.astype(np.float64) - want)
        row_errors.append((delta**2).sum(axis=1))
        row_norms.append((want.astype(np.float64) ** 2).sum(axis=1))
        stored_norm += float((have.astype(np.float64) ** 2).sum())
        largest = max(largest, float(delta.max(initial=0)))
        for kind, (relative, absolute) in ROUNDING.items():
            rounded[kind] = rounded[kind] and bool((delta <= relative * np.abs(want) + absolute).all())
    return Differences(np.concatenate(row_errors), np.concatenate(row_norms), stored_norm, largest, rounded)


def _explained(pair: Pair, found: Differences) -> tuple[Verdict, str, str]:
    kind = pair.stored.dtype
    share = _share(found)
    if kind in ROUNDING:
        return ("rounded", f"rounded to {kind}", kind) if found.rounded[kind] else ("wrong", share, "")
    codec = codecs().get(kind.lower())
    if codec is not None and _should_be_exact(pair, codec):
        if found.rounded["F16"] and kind != "F32":
            return "rounded", "every code is the source's, the scale is rounded to fp16", "grid"
        return "wrong", f"{share}, though {kind} can hold the source's values exactly", ""
    name, n_equal = _encoder_of(pair, codec)
    n_rows = len(found.row_errors)
    if n_equal == n_rows:
        return "rounded", f"quantized by {name}", name
    if n_equal > n_rows // 2:
        return "wrong", f"{n_rows - n_equal} of {n_rows} rows differ from the source quantized by {name}", name
    bound = type_bound(pair.stored.ggml_type)
    coarse = bound > COARSE
    too_large = found.apart > bound or found.growth > GROWTH if coarse else found.relative > bound
    if too_large or (bound < 1 / 3 and _lost_rows(found, bound)):
        return "wrong", f"{share}; the error is too large for {kind}", ""
    return "rounded", f"the error is in the range of {kind}", ""


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
    return grid is not None and grid.fits(codec)


def _lost_rows(found: Differences, bound: float) -> bool:
    """Whether a row of more than negligible norm has three times the relative error `bound`."""
    matters = found.row_norms > 1e-4 * found.row_norms.mean()
    return bool((found.row_errors > (3 * bound) ** 2 * found.row_norms)[matters].any())


def type_bound(kind: GGMLQuantizationType) -> float:
    """Return the largest relative error that rounding to the type explains.

    >>> round(type_bound(GGMLQuantizationType.Q8_0), 4)
    0.011
    """
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return float(min(UNRELATED, 4 * 2.0 ** (-8 * block_bytes / block)))


@dataclass(frozen=True)
class _AsGgml(Encoder):
    """Values quantized by ggml's own quantizers, as far as the gguf package has them."""

    def encode(self, source: SourceTensor | None, rows: slice) -> ByteArray:
        return quants.quantize(values(self.spec, source, rows), self.codec.ggml_type)


def _encoders(pair: Pair, codec: AnyCodec | None) -> dict[str, Encoder]:
    """Return the encoders that may have made the stored tensor, by their names in messages."""
    spec, found = pair.spec, dict[str, Encoder]()
    if codec is not None:
        names = _methods(codec) if codec.ternary else {codec.name: method_named("mse")}  # floats need no method
        found = {name: encoder_for(spec, codec, method) for name, method in names.items()}
        found.update(_weighted_encoders(pair, codec))
        for levels in codec.grid_levels:
            found[f"{codec.name} for a grid of {levels} levels"] = AsFloats(spec, KnownGridCodec(codec, levels))
    return {**found, "ggml": _AsGgml(spec, AnyGgmlType(pair.stored.ggml_type))}


def _weighted_encoders(pair: Pair, codec: AnyCodec) -> dict[str, Encoder]:
    importance = pair.imatrix.importance(pair.spec.name, pair.spec.shape) if pair.imatrix else None
    if importance is None or codec.ternary is False:
        return {}
    return {
        f"{name}, importance-weighted": Rounded(pair.spec, codec, method, importance)
        for name, method in _methods(codec).items()
        if method.weighted is not None
    }


def _methods(codec: TernaryCodec) -> dict[str, Method]:
    """Return the methods whose levels the type stores."""
    return {name: method for name, method in methods().items() if method.levels in codec.exact_levels}


def _encoder_of(pair: Pair, codec: AnyCodec | None) -> tuple[str, int]:
    """Return the encoder that reproduces most rows of the first chunk, and how many rows it reproduces in all."""
    known = _encoders(pair, codec)
    first = next(pair.chunks)
    counts = {name: _n_equal(pair, first, encoder) for name, encoder in known.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best] == 0:
        return best, 0
    return best, sum(_n_equal(pair, rows, known[best]) for rows in pair.chunks)


def _n_equal(pair: Pair, rows: slice, encoder: Encoder) -> int:
    """Return how many stored rows equal the source after this encoder."""
    have = pair.have(rows)
    try:
        with np.errstate(all="ignore"):
            made = encoder.codec.decode(encoder.encode(pair.source, rows))
    except (NotImplementedError, TensorError):
        return 0
    return int((made.reshape(have.shape) == have).all(axis=1).sum())
