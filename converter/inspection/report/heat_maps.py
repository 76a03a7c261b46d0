"""Heat maps over layers and kinds of tensors: tables with a figure in each cell, and a shade for the figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritgguf.converter.inspection.report.tensors import Exactness, Tensor, kinds, shown_error

N_SHADES = 8
LOWEST_DECADE = -4  # of errors that have shades of their own
LEGEND: dict[Exactness, str] = {
    "exact": "every value is the source's",
    "lossy": "~ rounded",
    "ternary": "ternary, held exactly by this type",
    "near": "≈ scales rounded to fp16",
    "floats": "held exactly only by floats",
}


@dataclass(frozen=True)
class Cell:
    """`shade` is a class of the template's style sheet; `value` the unrounded figure, if the cell has one."""

    shade: str
    text: str
    title: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """A layer's cells, None where nothing is known or there is no such tensor; or one cell, outside the layers."""

    name: str
    cells: list[Cell | None]
    is_layer: bool


@dataclass(frozen=True)
class HeatMap:
    """`known` tells whether any cell has a figure; `legend` has shades and what they mean, of a range both ends."""

    key: str
    title: str
    kinds: list[str]
    rows: list[Row]
    known: bool
    legend: list[tuple[str, str]]


def heat_maps(tensors: Sequence[Tensor], *, compared: bool) -> list[HeatMap]:
    """Return the maps of exactness, zeros and, where the tensors were compared with their source, errors."""
    matrices = [tensor for tensor in tensors if tensor.is_matrix]
    found = [_exactness_map(matrices), _zeros_map(matrices)]
    return [*found, _errors_map(matrices)] if compared else found


def _rows(matrices: Sequence[Tensor], cell: Callable[[Tensor], Cell | None]) -> list[Row]:
    places = {(tensor.layer, tensor.kind): tensor for tensor in matrices}

    def at(layer: int, kind: str) -> Cell | None:
        tensor = places.get((layer, kind))
        return None if tensor is None else cell(tensor)

    columns = kinds(matrices)
    layers = sorted({tensor.layer for tensor in matrices if tensor.layer is not None})
    outside = [Row(tensor.kind, [cell(tensor)], False) for tensor in matrices if tensor.layer is None]
    return outside + [Row(str(layer), [at(layer, kind) for kind in columns], True) for layer in layers]


def _exactness_map(matrices: Sequence[Tensor]) -> HeatMap:
    known = {tensor.exactness for tensor in matrices}
    legend = [(state, said) for state, said in LEGEND.items() if state in known]
    return HeatMap("exactness", "Exactness", kinds(matrices), _rows(matrices, _exactness_cell), bool(legend), [*legend])


def _exactness_cell(tensor: Tensor) -> Cell | None:
    if tensor.exactness == "unknown":
        return None
    mark = {"near": "≈", "lossy": "~"}.get(tensor.exactness, "")
    return Cell(tensor.exactness, mark + tensor.label, f"{tensor.name}: {LEGEND[tensor.exactness].lstrip('~≈ ')}")


def _zeros_map(matrices: Sequence[Tensor]) -> HeatMap:
    shares = [tensor.zeros for tensor in matrices if tensor.zeros is not None and tensor.layer is not None]
    low = math.floor(10 * min(shares, default=0)) / 10
    high = max(math.ceil(10 * max(shares, default=1)) / 10, low + 0.1)

    def cell(tensor: Tensor) -> Cell | None:
        if tensor.zeros is None:
            return None
        shade = _shade((tensor.zeros - low) / (high - low), 0)
        return Cell(shade, f"{100 * tensor.zeros:.0f}", f"{tensor.name}: {tensor.zeros:.2%} zeros", tensor.zeros)

    known = any(tensor.zeros is not None for tensor in matrices)
    legend = [("", f"{low:.0%}"), ("", f"{high:.0%}")]
    return HeatMap("zeros", "Zeros, %", kinds(matrices), _rows(matrices, cell), known, legend)


def _errors_map(matrices: Sequence[Tensor]) -> HeatMap:
    """Return the map of errors: 0 has a shade of its own, the others are on a logarithmic scale of whole decades."""
    errors = [tensor.error for tensor in matrices if tensor.error]
    high = max(math.ceil(math.log10(max(errors, default=0.1))), -1)  # rounding to fp16 alone stays pale
    low = min(max(math.floor(math.log10(min(errors, default=0.01))), LOWEST_DECADE), high - 1)

    def cell(tensor: Tensor) -> Cell | None:
        error = tensor.error
        if error is None:
            return None
        shade = _shade((math.log10(error) - low) / (high - low), 1) if error else "h0"
        return Cell(shade, shown_error(error), f"{tensor.name}: relative error {error:.3g}", error)

    known = any(tensor.error is not None for tensor in matrices)
    legend = [("", f"{shown_error(10.0**low)}%"), ("", f"{shown_error(10.0**high)}%, log")]
    return HeatMap("errors", "Relative error, %", kinds(matrices), _rows(matrices, cell), known, legend)


def _shade(share: float, first: int) -> str:
    """Return the class of a share from 0 to 1 among the shades from `first` on."""
    n_shades = N_SHADES - first
    return f"h{first + min(max(int(share * n_shades), 0), n_shades - 1)}"
