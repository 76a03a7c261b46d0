"""A model's tensors as the report shows them: in which layer each is, of which kind, and how exactly it is stored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tritgguf.converter.inspection.scale_counts import ScaleCounts
from tritgguf.converter.inspection.tensor_facts import MATRICES, TensorFacts
from tritgguf.converter.quant.codec import codecs

Exactness = Literal["exact", "ternary", "near", "floats", "lossy", "unknown"]

_IN_LAYER = re.compile(r"^(?:.*\.)?(?:blk|layers|blocks|h)\.(\d{1,4})\.(.+)$")
_KINDS = (
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_gate", "ssm_in", "ssm_out"),
    *("ffn_gate", "ffn_up", "ffn_down"),
)


@dataclass(frozen=True)
class Tensor:
    """One tensor; `layer` is None outside the layers. `error` is that against the source, None if it isn't known.

    `exactness` tells, where the source is known, whether the stored values are its own ("exact", "lossy"); else which
    type holds these values: a ternary one ("ternary"), one that rounds scales to fp16 ("near"), or only "floats".
    `label` is the type.
    """

    name: str
    layer: int | None
    kind: str
    is_matrix: bool
    is_linear: bool
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    bits_per_weight: float
    grid: str
    zeros: float | None
    exactness: Exactness
    label: str
    error: float | None
    reason: str
    scales: ScaleCounts | None

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)


def shown_tensors(
    found: Sequence[TensorFacts], errors: Mapping[str, float] | None, reasons: Mapping[str, str]
) -> list[Tensor]:
    """Return the tensors in the model's order; `errors` and `reasons` are by the tensors' names."""
    return [_shown(facts, errors, reasons.get(facts.name, "")) for facts in found]


def _shown(facts: TensorFacts, errors: Mapping[str, float] | None, reason: str) -> Tensor:
    place = _IN_LAYER.match(facts.name)
    layer, kind = (int(place[1]), place[2]) if place else (None, facts.name)
    error = None if errors is None else errors.get(facts.name)
    exactness, label = _held_by(facts) if errors is None else (_kept(error), facts.dtype.lower().split()[0])
    return Tensor(
        name=facts.name,
        layer=layer,
        kind=kind.removesuffix(".weight"),
        is_matrix=facts.role in MATRICES,
        is_linear=facts.role == "linear",
        shape=facts.shape,
        dtype=facts.dtype,
        n_bytes=facts.n_bytes,
        bits_per_weight=facts.bits_per_weight,
        grid=_grid(facts),
        zeros=facts.zeros,
        exactness=exactness,
        label=label,
        error=error,
        reason=reason or facts.note,
        scales=facts.scales,
    )


def _kept(error: float | None) -> Exactness:
    if error is None:
        return "unknown"
    return "lossy" if error else "exact"


def _held_by(facts: TensorFacts) -> tuple[Exactness, str]:
    known = codecs()
    ternary = [name for name in facts.exact_types if known[name].ternary]
    if ternary:
        return "ternary", ternary[0]
    if facts.near_types:
        return "near", facts.near_types[0]
    if facts.exact_types:
        return "floats", facts.exact_types[0]
    return "unknown", ""


def _grid(facts: TensorFacts) -> str:
    grid = facts.grid
    if grid is None:
        return "none" if facts.zeros is not None else ""
    return f"{grid.kind} per {grid.extent}" + (f", {grid.outliers} outliers" if grid.outliers else "")


def kinds(tensors: Sequence[Tensor]) -> list[str]:
    """Return the kinds of the layers' matrices: the usual ones in a layer's order, then others as they come."""
    found = dict.fromkeys(tensor.kind for tensor in tensors if tensor.is_matrix and tensor.layer is not None)
    return [*(kind for kind in _KINDS if kind in found), *(kind for kind in found if kind not in _KINDS)]


def shown_error(error: float) -> str:
    """Return a relative error in per cent, with two digits.

    >>> [shown_error(error) for error in (0.0, 0.0437, 0.5, 1.23, 0.000244, 2e-7)]
    ['0', '4.4', '50', '123', '0.024', '2e-05']
    """
    if error == 0:
        return "0"
    digits = ".0f" if error >= 0.1 else ".2g" if error >= 1e-5 else ".0e"
    return f"{100 * error:{digits}}"
