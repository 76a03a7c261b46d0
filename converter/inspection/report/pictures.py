"""The report's pictures as numbers: where each bar, dot and tick is, in an SVG's own units.

Pictures are WIDTH wide and never wider than a phone's screen, so that their texts stay readable there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.inspection.report.quality import Quality
from tritgguf.converter.inspection.report.tensors import Tensor
from tritgguf.converter.inspection.scale_counts import BINS_PER_OCTAVE, LOWEST_OCTAVE, ScaleCounts

WIDTH, LEFT, RIGHT, TOP = 360.0, 52.0, 8.0, 10.0
TALL, LOW = 150.0, 70.0  # heights of the plots in a picture of its own and in one of many
SMALL_WIDTH, SMALL_MARGIN = 180.0, 10.0
MOST_SMALL_BARS = 40
MOST_LABELS = 12  # along an axis


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str
    colour: int = 0


@dataclass(frozen=True)
class Tick:
    """A label on an axis; `at` is its x or y."""

    at: float
    text: str


@dataclass(frozen=True)
class Bars:
    bars: list[Bar]
    across: list[Tick]
    up: list[Tick]


@dataclass(frozen=True)
class Histogram:
    """The scales of all tensors of a kind."""

    kind: str
    counts: ScaleCounts
    bars: list[Bar]
    across: list[Tick]


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    number: int
    of: Quality
    title: str


@dataclass(frozen=True)
class Dots:
    dots: list[Dot]
    across: list[Tick]
    up: list[Tick]


def layer_sizes(tensors: Sequence[Tensor], colours: Mapping[str, int]) -> Bars | None:
    """Return a bar for each layer, of a piece for each type; None where the model's layers aren't known."""
    sizes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for tensor in tensors:
        if tensor.layer is not None:
            sizes[tensor.layer][tensor.dtype] += tensor.n_bytes
    most = max((sum(types.values()) for types in sizes.values()), default=0)
    if not most:
        return None
    layers = sorted(sizes)
    step = (WIDTH - LEFT - RIGHT) / len(layers)
    bars, across = [], []
    for place, layer in enumerate(layers):
        x, y = LEFT + place * step, TOP + TALL
        for dtype in sorted(sizes[layer], key=lambda name: colours[name]):
            height = sizes[layer][dtype] / most * TALL
            y -= height
            title = f"layer {layer}: {dtype} {format_size(sizes[layer][dtype])}"
            bars.append(Bar(x + step * 0.08, y, step * 0.84, height, title, colours[dtype]))
        if place % math.ceil(len(layers) / MOST_LABELS) == 0:
            across.append(Tick(x + step / 2, str(layer)))
    return Bars(bars, across, [Tick(TOP + TALL - part * TALL, format_size(round(part * most))) for part in (0, 0.5, 1)])


def histogram(kind: str, counts: ScaleCounts) -> Histogram:
    """Return a histogram of scales on a logarithmic axis, with at most MOST_SMALL_BARS bars."""
    filled = [place for place, number in enumerate(counts.bins) if number]
    if not filled:
        return Histogram(kind, counts, [], [])
    per_bar = max(1, math.ceil((filled[-1] - filled[0] + 3) / MOST_SMALL_BARS))
    first = (filled[0] - 1) // per_bar * per_bar
    n_bars = max(8, (filled[-1] - first) // per_bar + 2)
    numbers = [int(counts.bins[first + i * per_bar : first + (i + 1) * per_bar].sum()) for i in range(n_bars)]
    edges = [2.0 ** (LOWEST_OCTAVE + (first + i * per_bar) / BINS_PER_OCTAVE) for i in range(n_bars + 1)]
    step, most = (SMALL_WIDTH - 2 * SMALL_MARGIN) / n_bars, max(numbers)
    bars = [
        Bar(
            SMALL_MARGIN + place * step,
            TOP + LOW - number / most * LOW,
            step * 0.9,
            number / most * LOW,
            f"{number:,} scales from {edges[place]:.3g} to {edges[place + 1]:.3g}",
        )
        for place, number in enumerate(numbers)
        if number
    ]
    labelled = (0, n_bars // 2, n_bars)
    across = [Tick(SMALL_MARGIN + place * step, f"{edges[place]:.2g}") for place in labelled]
    return Histogram(kind, counts, bars, across)


def against_size(found: Sequence[Quality], values: Sequence[float | None], name: str) -> Dots | None:
    """Return a dot for each file at its size and its value; None if no file has one."""
    numbered = enumerate(zip(found, values, strict=True), 1)
    points = [(number, one, value) for number, (one, value) in numbered if value is not None]
    if not points:
        return None
    small, large = _range([float(one.file_bytes) for _, one, _ in points])
    low, high = _range([value for *_, value in points])

    def x(size: float) -> float:
        return LEFT + (size - small) / (large - small) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + TALL - (value - low) / (high - low) * TALL

    dots = [
        Dot(x(one.file_bytes), y(value), number, one, f"{one.name}: {format_size(one.file_bytes)}, {name} {value:.4f}")
        for number, one, value in points
    ]
    sizes = [small + part * (large - small) for part in (0.1, 0.5, 0.9)]
    heights = [low + part * (high - low) for part in (0, 0.5, 1)]
    across = [Tick(x(size), format_size(round(size))) for size in sizes]
    return Dots(dots, across, [Tick(y(height), _short(height)) for height in heights])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range around the values with a margin; of values from 0 on, it is from 0 on too."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return max(low - margin, 0.0) if low >= 0 else low - margin, high + margin


def _short(value: float) -> str:
    """Return a number in at most six characters, such as 14.6 or 8e+07: a label has room for no more."""
    text = f"{value:.3g}"
    return text if len(text) <= 6 else f"{value:.0e}"
