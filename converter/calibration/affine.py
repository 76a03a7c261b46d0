"""Q2_K in gptq: codes from 0 to 3 on a grid of its own for each 16 columns, chosen as gptq.py chooses others.

A weight is d · scale · code - dmin · minimum. Scale and minimum, 4 bits each, belong to 16 columns; d and dmin, fp16,
belong to 256. As long as the grids stay as they are, only codes are to be chosen: they are gptq.py's four codes, from
-1 to 2, of weights that the grids' offsets are taken from. So feedback and descent are the same functions for both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tritgguf.converter.calibration import gptq
from tritgguf.converter.quant.codecs.q2_k import GROUP, MOST, AffineRows

IN_BLOCK = 16  # groups that share d and dmin
MOST_CODE = 3
FOUR = 2  # the highest of gptq.py's four codes, which the stored 3 is
ENDS = torch.linspace(0.5, 1, 4)  # times a group's least and largest weight: what is tried for codes 0 and 3
UNITS = torch.linspace(0.75, 1.05, 25)  # times what the largest of a block's scales, or minima, needs: tried for d
TINY, ROUNDING = 1e-30, 1e-5


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
        return self.scales * gptq.spread(self.d, IN_BLOCK)

    def moved(self, weights: Tensor) -> Tensor:
        """Return the weights less each group's level of gptq.py's code 0."""
        return weights - gptq.spread(self.steps - self.minima * gptq.spread(self.dmin, IN_BLOCK), GROUP)


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
    numbers, scales, minima = (tensor.byte().cpu().numpy() for tensor in (codes + 1, grids.scales, grids.minima))
    return AffineRows(numbers, scales, minima, grids.d.cpu().numpy(), grids.dmin.cpu().numpy())


def fit_grids(weights: Tensor, importance: Tensor) -> Grids:
    """Return grids of small error Σ h (w - its nearest level)², h the columns' `importance`, (n_columns,)."""
    shares = importance.contiguous().reshape(1, -1, GROUP)
    grids = [_grids(rows, shares) for rows in weights.split(gptq.ROWS)]
    return Grids(*(torch.cat(parts) for parts in zip(*grids, strict=True)))


def _grids(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups = weights.reshape(len(weights), -1, GROUP)
    shares = shares.expand_as(groups)
    lines, sums = best_lines(groups, shares), shares.sum(-1).clamp_min(TINY)
    d, scales = in_units(lines.slopes, lines.stiffness)
    dmin, minima = in_units(_minima(scales * gptq.spread(d, IN_BLOCK), lines.ones, groups, shares), sums)
    return d, dmin, scales, minima


class Lines(NamedTuple):
    """Each group's weights as slope · code - minimum, neither below 0, by weighted least squares; (n_rows, n_groups).

    `gains` tells by how much the error is below that of zeros, `stiffness` · x² by how much it grows where a slope is x
    off and its minimum is the best for it. `ones` is Σ h code.
    """

    slopes: Tensor
    minima: Tensor
    gains: Tensor
    stiffness: Tensor
    ones: Tensor


def best_lines(groups: Tensor, shares: Tensor) -> Lines:
    """Return the best of some lines; weights, and h, are (n_rows, n_groups, GROUP)."""
    least, largest = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    best = _lines(groups, shares, torch.zeros_like(least), -least)
    for low in -ENDS:
        for high in ENDS:
            tried = _lines(groups, shares, (high * largest + low * least) / MOST_CODE, low * least)
            best = _better(best, tried)
    return _better(best, _lines(groups, shares, best.slopes, best.minima))


def _better(one: Lines, other: Lines) -> Lines:
    wins = other.gains > one.gains
    return Lines(*(torch.where(wins, theirs, ours) for ours, theirs in zip(one, other, strict=True)))


def _lines(groups: Tensor, shares: Tensor, slopes: Tensor, minima: Tensor) -> Lines:
    """Return the lines through the codes that are nearest on grids of these slopes and minima."""
    codes = ((groups + minima[..., None]) * _inverse(slopes)[..., None]).round_().clamp_(0, MOST_CODE)
    weighted, sums = shares * codes, shares.sum(-1).clamp_min(TINY)
    ones, squares = weighted.sum(-1), (weighted * codes).sum(-1)
    dots, totals = (weighted * groups).sum(-1), (shares * groups).sum(-1)
    spreads = squares - ones * ones / sums
    spreads = torch.where(spreads > ROUNDING * squares, spreads, 0)
    slopes = (dots - ones * totals / sums) * _inverse(spreads)
    through_zero = ones * slopes < totals
    stiffness = torch.where(through_zero, squares, spreads)
    slopes = torch.where(through_zero, dots * _inverse(squares), slopes).clamp_min(0)
    minima = _minima(slopes, ones, groups, shares)
    gains = 2 * (slopes * dots - minima * totals + slopes * minima * ones) - slopes**2 * squares - minima**2 * sums
    return Lines(slopes, minima, gains, stiffness, ones)


def _minima(slopes: Tensor, ones: Tensor, groups: Tensor, shares: Tensor) -> Tensor:
    """Return the best minima for given slopes and codes."""
    return ((ones * slopes - (shares * groups).sum(-1)) / shares.sum(-1).clamp_min(TINY)).clamp_min(0)


def in_units(values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Return each block's unit, which fp16 holds, and whole numbers up to MOST, whose products are near the values.

    Values of zero or more, and their importance, are (n_rows, n_groups), units (n_rows, n_blocks). Of some units it is
    the one of least Σ importance · difference².
    """
    values, importance = (tensor.reshape(len(tensor), -1, IN_BLOCK) for tensor in (values, importance))
    needed = values.amax(-1, keepdim=True) / MOST
    least, units, numbers = torch.full_like(needed, torch.inf), gptq.fp16(needed), torch.zeros_like(values)
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
        columns, block = slice(group * GROUP, (group + 1) * GROUP), group // IN_BLOCK
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
    more = torch.arange(MOST + 1.0, device=scales.device)[:, None] - scales
    less = (minima + (push - both * more) * _inverse(other)).round_().clamp_(0, MOST) - minima
    gains = 2 * (pull * more + push * less - both * more * less) - own * more**2 - other * less**2
    best = gains.argmax(0, keepdim=True)
    return more.gather(0, best)[0], less.gather(0, best)[0]
