"""Q2_K in gptq: codes from 0 to 3 on a grid of its own for each 16 columns, chosen as gptq.py chooses others.

A weight is d · scale · code - dmin · minimum. Scale and minimum, 4 bits each, belong to 16 columns; d and dmin, fp16,
belong to 256. As long as the grids stay as they are, only codes are to be chosen: they are gptq.py's four codes, from
-1 to 2, of weights that the grids' offsets are taken from. So feedback and descent are the same functions for both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritgguf.converter.calibration import gptq
from tritgguf.converter.quant.codecs.q2_k import GROUP, MOST, AffineRows

GROUPS = 16  # that share d and dmin
FOUR = 2  # the highest of gptq.py's four codes, which the stored 3 is
ENDS = torch.linspace(0.5, 1, 4)  # times a group's least and largest weight: what is tried for codes 0 and 3
UNITS = torch.linspace(0.75, 1.05, 25)  # times what the largest of a block's scales, or minima, needs: tried for d


@dataclass(frozen=True)
class Grids:
    """Grids as a file stores them, all float32: d and dmin (n_rows, n_blocks), scales and minima (n_rows, n_groups)."""

    d: Tensor
    dmin: Tensor
    scales: Tensor
    minima: Tensor

    @property
    def steps(self) -> Tensor:
        """The distance between a group's levels, (n_rows, n_groups)."""
        return self.scales * gptq.spread(self.d, GROUPS)

    def moved(self, weights: Tensor) -> Tensor:
        """Return the weights less each group's level of gptq.py's code 0."""
        return weights - gptq.spread(self.steps - self.minima * gptq.spread(self.dmin, GROUPS), GROUP)


def quantized(weights: Tensor, hessian: Tensor, *, feedback: bool, refitted: bool, descent: bool) -> AffineRows:
    """Return the rows of a layer with this damped H, see gptq.py, as Q2_K stores them; steps can be left out."""
    grids = fit_grids(weights, hessian.diagonal())
    moved, steps = grids.moved(weights), grids.steps
    if feedback:
        codes = gptq.feed_back(moved, hessian, steps, GROUP, FOUR)
    else:
        codes = gptq.round_groups(moved, steps, GROUP, FOUR)
    if refitted:
        grids = refit(weights, codes, grids, hessian)
    if descent:
        codes = gptq.descend(grids.moved(weights), codes, grids.steps, hessian, GROUP, FOUR)
    return stored(codes, grids)


def stored(codes: Tensor, grids: Grids) -> AffineRows:
    """Return rows of gptq.py's codes on these grids for the codec."""
    numbers, scales, minima = (tensor.byte().numpy() for tensor in (codes + 1, grids.scales, grids.minima))
    return AffineRows(numbers, scales, minima, grids.d.numpy(), grids.dmin.numpy())


def fit_grids(weights: Tensor, importance: Tensor) -> Grids:
    """Return grids of small error Σ h (w - its nearest level)², h the columns' `importance`, (n_columns,)."""
    groups = weights.reshape(len(weights), -1, GROUP)
    lines = _best_lines(groups, importance.reshape(1, -1, GROUP).expand_as(groups))
    d, scales = _in_units(lines.slopes, lines.spreads)
    dmin, minima = _in_units(lines.best_minima(scales * gptq.spread(d, GROUPS)), lines.shares)
    return Grids(d, dmin, scales, minima)


@dataclass(frozen=True)
class _Lines:
    """Each group's weights as slope · code - minimum, neither below 0, by weighted least squares; (n_rows, n_groups).

    `gains` tells by how much that lowers the error from that of zeros. `shares`, `ones` and `totals` are the sums of
    h, h · code and h · weight, `spreads` is Σ h (code - its mean)².
    """

    slopes: Tensor
    minima: Tensor
    gains: Tensor
    shares: Tensor
    ones: Tensor
    totals: Tensor
    spreads: Tensor

    def best_minima(self, slopes: Tensor) -> Tensor:
        """Return the best minima for other slopes."""
        return ((self.ones * slopes - self.totals) / self.shares).clamp_min(0)

    def better(self, other: _Lines) -> _Lines:
        """Return in each group the line of larger gain."""
        wins = other.gains > self.gains
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Lines(*(torch.where(wins, theirs, ours) for ours, theirs in pairs))


def _lines(groups: Tensor, shares: Tensor, slopes: Tensor, minima: Tensor) -> _Lines:
    """Return the lines through the codes that are nearest on grids of these slopes and minima."""
    codes = ((groups + minima[..., None]) * _inverse(slopes)[..., None]).round_().clamp_(0, 3)
    weighted, sums = shares * codes, shares.sum(-1)
    ones, squares = weighted.sum(-1), (weighted * codes).sum(-1)
    dots, totals = (weighted * groups).sum(-1), (shares * groups).sum(-1)
    spreads = (squares - ones * ones / sums).clamp_min(0)
    slopes = (dots - ones * totals / sums) * _inverse(spreads)
    slopes = torch.where(ones * slopes < totals, dots * _inverse(squares), slopes).clamp_min(0)  # without a minimum
    minima = ((ones * slopes - totals) / sums).clamp_min(0)
    gains = 2 * (slopes * dots - minima * totals + slopes * minima * ones) - slopes**2 * squares - minima**2 * sums
    return _Lines(slopes, minima, gains, sums, ones, totals, spreads)


def _best_lines(groups: Tensor, shares: Tensor) -> _Lines:
    least, largest = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    best = _lines(groups, shares, torch.zeros_like(least), -least)
    for low in -ENDS:
        for high in ENDS:
            best = best.better(_lines(groups, shares, (high * largest + low * least) / 3, low * least))
    return best.better(_lines(groups, shares, best.slopes, best.minima))


def _in_units(values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Return each block's unit, which fp16 holds, and whole numbers up to MOST, whose products are near the values.

    Of the tried units it is the one of least Σ importance · difference².
    """
    values, importance = (tensor.reshape(len(tensor), -1, GROUPS) for tensor in (values, importance))
    needed = values.amax(-1, keepdim=True) / MOST
    least, units, numbers = torch.full_like(needed, torch.inf), torch.zeros_like(needed), torch.zeros_like(values)
    for factor in UNITS:
        unit = gptq.fp16(factor * needed)
        tried = (values * _inverse(unit)).round_().clamp_(0, MOST)
        error = (importance * (values - tried * unit).square()).sum(-1, keepdim=True)
        wins = error < least
        least, units = torch.where(wins, error, least), torch.where(wins, unit, units)
        numbers = torch.where(wins, tried, numbers)
    return units[..., 0], numbers.reshape(len(values), -1)


def _inverse(values: Tensor) -> Tensor:
    """Return 1 / values, 0 where that is beyond float32's range."""
    return (1 / values).nan_to_num_(posinf=0.0)


def refit(weights: Tensor, codes: Tensor, grids: Grids, hessian: Tensor) -> Grids:
    """Return grids of no larger error for these codes: in one sweep, each group's becomes the best with all others.

    d and dmin stay: fitting them too, or all scales and minima together before they are rounded, gains less than 1 %.
    """
    scales, minima = grids.scales.T.clone(), grids.minima.T.clone()
    numbers = codes + 1
    slopes = (grids.moved(weights) - codes * gptq.spread(grids.steps, GROUP)) @ hessian
    for group in range(len(scales)):
        columns, block = slice(group * GROUP, (group + 1) * GROUP), group // GROUPS
        rise, fall = numbers[:, columns] * grids.d[:, block, None], -grids.dmin[:, block, None].expand(-1, GROUP)
        more, less = _best_steps(
            rise, fall, slopes[:, columns], hessian[columns, columns], scales[group], minima[group]
        )
        scales[group] += more
        minima[group] += less
        slopes -= (more[:, None] * rise + less[:, None] * fall) @ hessian[columns]
    return replace(grids, scales=scales.T, minima=minima.T)


def _best_steps(
    rise: Tensor, fall: Tensor, slopes: Tensor, hessian: Tensor, scales: Tensor, minima: Tensor
) -> tuple[Tensor, Tensor]:
    """Return by how much a group's scale and minimum, (n_rows,), should change; each scale is tried with its minimum.

    `rise` and `fall` are what the group's weights gain by one more of each, `slopes` is (W - Q) H, all (n_rows, GROUP).
    """
    pulled, pushed = rise @ hessian, fall @ hessian
    own, both, other = (pulled * rise).sum(1), (pulled * fall).sum(1), (pushed * fall).sum(1)
    pull, push = (slopes * rise).sum(1), (slopes * fall).sum(1)
    more = torch.arange(MOST + 1.0)[:, None] - scales
    less = (minima + (push - both * more) * _inverse(other)).round_().clamp_(0, MOST) - minima
    gains = 2 * (pull * more + push * less - both * more * less) - own * more**2 - other * less**2
    best = gains.argmax(0, keepdim=True)
    return more.gather(0, best)[0], less.gather(0, best)[0]
