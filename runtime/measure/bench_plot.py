"""A picture of a bench: bars of tokens per second, prompts above generation, a colour for each file."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tritgguf.converter.errors import EngineError

if TYPE_CHECKING:
    from tritgguf.runtime.measure.bench import Bench, Series

BAR_HEIGHT, MARGIN_HEIGHT, WIDTH = 0.28, 1.1, 8.0  # inches
DOTS_PER_INCH = 150
GAP = 0.8  # between the groups of bars, in bars


def require_matplotlib() -> None:
    """Raise EngineError if matplotlib isn't installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EngineError('--plot needs matplotlib, which isn\'t installed: pip install "tritgguf[bench]"')


def plot(found: Bench) -> bytes:
    """Return the picture as a PNG file; EngineError if matplotlib isn't installed."""
    require_matplotlib()
    figure_class = importlib.import_module("matplotlib.figure").Figure  # now only: it is optional, and loads slowly
    kinds = [
        (title, series)
        for title, generates in (("prompt", False), ("generation", True))
        if (series := [one for one in found.series if one.test.generates is generates])
    ]
    n_bars = [len(series) + GAP * len({_setting(one) for one in series}) for _, series in kinds]
    height = sum(n_bars) * BAR_HEIGHT + MARGIN_HEIGHT * len(kinds)
    figure = figure_class(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=n_bars)[:, 0]
    for panel, (title, series) in zip(panels, kinds, strict=True):
        _draw(panel, series, title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _setting(series: Series) -> str:
    threads = f"{series.threads} thread{'s' if series.threads > 1 else ''}"
    return f"{series.test.name}, {threads}" + ("" if series.test.generates else f", batch {series.batch}")


def _draw(panel: Any, series: Sequence[Series], title: str) -> None:  # noqa: ANN401
    """Draw a group of bars for each setting, the first on top; whiskers reach from the slowest to the fastest run."""
    files = list(dict.fromkeys(one.path for one in series))
    ticks: dict[str, float] = {}
    position = 0.0
    for setting in dict.fromkeys(map(_setting, series)):
        group = [one for one in series if _setting(one) == setting]
        for offset, one in enumerate(group):
            spread = [[one.median - min(one.rates)], [max(one.rates) - one.median]]
            colour = f"C{files.index(one.path) % 10}"
            label = one.path.name if not ticks else None
            panel.barh(position + offset, one.median, 0.85, xerr=spread, color=colour, capsize=3, label=label)
        ticks[setting] = position + (len(group) - 1) / 2
        position += len(group) + GAP
    panel.set_yticks(list(ticks.values()), list(ticks))
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    panel.set_title(title, loc="left")
    panel.set_xlabel("tokens per second: median, fastest and slowest run")
    panel.spines[["top", "right"]].set_visible(False)
    if len(files) > 1:
        panel.legend(frameon=False)
