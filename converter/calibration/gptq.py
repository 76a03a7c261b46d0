"""Codes and scales of a linear layer, chosen for its inputs: the linear algebra of `--method gptq`.

A layer computes W x. For inputs X, (n_tokens, n_columns), its error is |X (W - Q)ᵀ|², which H = XᵀX alone tells: it is
the sum over rows e of W - Q of e H eᵀ. Each function here lowers that, for all rows at once. Weights are float32
(n_rows, n_columns), codes the same with values from -1 to `highest` (1, or 2 for types of four codes), scales float32
(n_rows, n_columns / group): `group` neighbouring columns share one.

Error feedback is GPTQ (https://arxiv.org/abs/2210.17323); the correction's target is that of GPTAQ
(https://arxiv.org/abs/2504.02692), with the error of the residual stream added.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # columns whose feedback on later ones is added in one product
ROWS = 128  # that are fitted together, so that what becomes of them stays in a cache
SMALL = 256  # a triangular matrix that is inverted in one go
FACTORS = torch.linspace(0.22, 0.7, 13)  # of a group's largest magnitude: scales to try for four codes
TERNARY = 1  # the highest of three codes


def damped(hessian: Tensor, share: float) -> Tensor:
    """Return H with a share of its mean diagonal added to its diagonal."""
    result = hessian.clone()
    result.diagonal().add_(share * hessian.diagonal().mean() + torch.finfo(torch.float32).tiny)
    return result


def corrected(weights: Tensor, hessian: Tensor, pull: Tensor) -> Tensor:
    """Return weights that make the float model's outputs of the quantized model's inputs, as far as they can.

    `hessian` is XᵀX of the quantized model's inputs, damped; `pull`, (n_rows, n_columns), is (Y - Z)ᵀX: Y are the float
    model's outputs, Z those of its weights for X. For a layer that adds to the residual stream both are with the stream
    that they are added to. Both are divided by the same number of tokens.
    """
    return weights + torch.cholesky_solve(pull.T, torch.linalg.cholesky(hessian)).T


def fit_scales(weights: Tensor, importance: Tensor, group: int, highest: int) -> Tensor:
    """Return each group's scale of least error Σ h (w - d q)², h the columns' `importance`, (n_columns,).

    For three codes it is the best. The nonzero codes are then those of the largest magnitudes, so each number of them
    is tried. For four codes some scales of both signs are tried.
    """
    choose = _three if highest == TERNARY else _four
    shares = importance.contiguous().reshape(1, -1, group)  # a diagonal of H lies far apart in memory
    groups = (rows.reshape(len(rows), -1, group) for rows in weights.split(ROWS))
    return torch.cat([choose(some, shares.expand_as(some)) for some in groups])


def _three(groups: Tensor, shares: Tensor) -> Tensor:
    magnitudes, order = groups.abs().sort(dim=-1, descending=True)
    shares = shares.gather(-1, order)
    sums, totals = (shares * magnitudes).cumsum(-1), shares.cumsum(-1).clamp_min(1e-30)
    best = (sums * sums / totals).argmax(-1, keepdim=True)
    return (sums.gather(-1, best) / totals.gather(-1, best))[..., 0]


def _four(groups: Tensor, shares: Tensor) -> Tensor:
    largest = groups.abs().amax(-1, keepdim=True)
    best = scales = torch.zeros_like(largest)
    for factor in torch.cat([FACTORS, -FACTORS]):
        codes = nearest(groups, factor * largest, 2)
        weight = shares * codes
        dots, norms = (weight * groups).sum(-1, keepdim=True), (weight * codes).sum(-1, keepdim=True).clamp_min(1e-30)
        gain = dots * dots / norms
        scales = torch.where(gain > best, dots / norms, scales)
        best = torch.maximum(best, gain)
    return scales[..., 0]


def nearest(values: Tensor, scales: Tensor, highest: int) -> Tensor:
    """Return the codes nearest to values / scales; 0 where the scale is 0."""
    inverse = torch.where(scales == 0, torch.zeros_like(scales), 1 / scales)
    return (values * inverse).round_().clamp_(-1, highest)


def round_groups(weights: Tensor, scales: Tensor, group: int, highest: int) -> Tensor:
    """Return each weight's nearest code, without feedback."""
    return nearest(weights, spread(scales, group), highest)


def spread(scales: Tensor, group: int) -> Tensor:
    """Return each column's scale, (n_rows, n_columns)."""
    return scales.repeat_interleave(group, dim=1)


def feed_back(weights: Tensor, hessian: Tensor, scales: Tensor, group: int, highest: int) -> Tensor:
    """Return codes chosen column by column, where later columns make up for the error so far, as far as they can.

    Columns of the largest diagonal of H come first, since the last ones have nobody to make up for them.
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order])
    left, columns = weights.T[order].contiguous(), spread(scales, group).T[order]
    codes = torch.empty_like(left)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = torch.empty_like(left[start:stop])
        for column in range(start, stop):
            codes[column] = nearest(left[column], columns[column], highest)
            error = (left[column] - codes[column] * columns[column]) / upper[column, column]
            left[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        left[stop:] -= upper[start:stop, stop:].T @ errors
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous()


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper triangular U with H⁻¹ = UᵀU."""
    return inverse_of_upper(torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1))  # of the upper R with H = R Rᵀ


def inverse_of_upper(matrix: Tensor) -> Tensor:
    """Return the inverse of an upper triangular matrix, by halves: a third of the work of solving for the identity."""
    if len(matrix) <= SMALL:
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(matrix, identity, upper=True)
    half = len(matrix) // 2
    result = torch.zeros_like(matrix)
    result[:half, :half] = inverse_of_upper(matrix[:half, :half])
    result[half:, half:] = inverse_of_upper(matrix[half:, half:])
    result[:half, half:] = -result[:half, :half] @ (matrix[:half, half:] @ result[half:, half:])
    return result


def refit(weights: Tensor, codes: Tensor, hessian: Tensor, group: int) -> Tensor:
    """Return the scales of least error for these codes, those of a row all together; 0 where all codes are 0."""
    n_rows, n_columns = weights.shape
    targets = ((weights @ hessian) * codes).reshape(n_rows, -1, group).sum(-1)
    products = weights.new_empty(n_rows, n_columns // group, n_columns // group)
    for start in range(0, n_rows, ROWS):
        some = codes[start : start + ROWS]
        for number in range(n_columns // group):
            first = number * group
            product = (some[:, first : first + group] @ hessian[first : first + group, first:]).mul_(some[:, first:])
            sums = product.reshape(len(some), -1, group).sum(-1)
            products[start : start + ROWS, number, number:] = products[start : start + ROWS, number:, number] = sums
    unused = products.diagonal(dim1=1, dim2=2) <= 0
    products.diagonal(dim1=1, dim2=2)[unused] = 1
    return torch.linalg.solve(products, targets)


def descend(weights: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor, group: int, highest: int) -> Tensor:
    """Return codes of no larger error: in one sweep over the columns, each code becomes the best with all others."""
    columns, codes = spread(scales, group).T.contiguous(), codes.T.clone()
    slopes = ((weights - codes.T * columns.T) @ hessian).T.contiguous()
    for start in range(0, len(columns), BLOCK):
        stop = min(start + BLOCK, len(columns))
        steps = torch.empty_like(columns[start:stop])
        for column in range(start, stop):
            best = codes[column] * columns[column] + slopes[column] / hessian[column, column]
            code = nearest(best, columns[column], highest)
            step = (code - codes[column]) * columns[column]
            codes[column] = code
            slopes[column + 1 : stop].addr_(hessian[column, column + 1 : stop], step, alpha=-1)
            steps[column - start] = step
        slopes[stop:] -= hessian[stop:, start:stop] @ steps
    return codes.T.contiguous()


def error(weights: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor, group: int) -> float:
    """Return the layer's error, the sum over rows e of W - Q of e H eᵀ."""
    difference = weights - codes * spread(scales, group)
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def fp16(scales: Tensor) -> Tensor:
    """Return the scales as a file stores them."""
    return scales.half().float()


def quantized(
    weights: Tensor, hessian: Tensor, group: int, highest: int, *, feedback: bool, refitted: bool, descent: bool
) -> tuple[Tensor, Tensor]:
    """Return codes, int8, and scales that fp16 holds, for a layer with this damped H; steps can be left out."""
    scales = fp16(fit_scales(weights, hessian.diagonal(), group, highest))
    choose = feed_back(weights, hessian, scales, group, highest) if feedback else None
    codes = round_groups(weights, scales, group, highest) if choose is None else choose
    if refitted:
        scales = fp16(refit(weights, codes, hessian, group))
    if descent:
        codes = descend(weights, codes, scales, hessian, group, highest)
    codes = codes * (spread(scales, group) != 0)
    if highest == TERNARY:  # where all scales are positive by convention
        codes, scales = codes * spread(scales, group).sign(), scales.abs()
    return codes.to(torch.int8), scales
