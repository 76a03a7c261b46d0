"""Q2_K's grids in gptq against brute force, least squares (torch.linalg.lstsq) and libggml."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.oracles import libggml
from tritgguf.converter.errors import TensorError
from tritgguf.converter.quant.codecs.q2_k import CODEC

torch = pytest.importorskip("torch", reason="needs the ptq extra")

from tritgguf.converter.calibration import affine, gptq  # noqa: E402 (it imports torch)

N_ROWS, STEPS = 5, ("feedback", "refitted", "descent")


@pytest.fixture
def small(monkeypatch) -> None:
    """Groups of 8 columns and blocks of 2 groups, so that brute force ends soon."""
    monkeypatch.setattr(affine, "GROUP", 8)
    monkeypatch.setattr(affine, "IN_BLOCK", 2)


def layer(n_columns: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (5, n_columns), and inputs (3 n_columns, n_columns) whose columns hang together and differ in size."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.eye(n_columns) + torch.randn(n_columns, n_columns, generator=random) / n_columns**0.5
    sizes = 0.5 + torch.rand(n_columns, generator=random)
    inputs = torch.randn(3 * n_columns, n_columns, generator=random) @ mix * sizes
    return torch.randn(N_ROWS, n_columns, generator=random), inputs


def random_grids(n_columns: int, seed: int) -> tuple[torch.Tensor, affine.Grids]:
    """Any codes and grids, some of them of no use."""
    random = torch.Generator().manual_seed(seed)
    n_groups = n_columns // affine.GROUP
    n_blocks = n_groups // affine.IN_BLOCK
    d, dmin = (gptq.fp16(0.15 * torch.rand(N_ROWS, n_blocks, generator=random)) for _ in range(2))
    dmin[0, 0] = 0
    scales, minima = (torch.randint(0, 16, (N_ROWS, n_groups), generator=random).float() for _ in range(2))
    codes = torch.randint(-1, 3, (N_ROWS, n_columns), generator=random).float()
    codes[1, : affine.GROUP] = -1
    return codes, affine.Grids(d, dmin, scales, minima)


def values(codes: torch.Tensor, grids: affine.Grids) -> torch.Tensor:
    """The weights, in float64, as ggml's formula has them."""
    d, dmin = (gptq.spread(unit.double(), affine.IN_BLOCK) for unit in (grids.d, grids.dmin))
    scales, minima = (gptq.spread(part, affine.GROUP) for part in (d * grids.scales, dmin * grids.minima))
    return scales * (codes + 1) - minima


def row_errors(weights: torch.Tensor, found: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Each row's squared error of the layer's outputs."""
    return ((weights - found).double() @ inputs.double().T).square().sum(1)


def test_lines_are_as_good_as_those_of_a_fine_scan() -> None:
    weights, inputs = layer(128)
    groups = weights.reshape(N_ROWS, -1, affine.GROUP)
    shares = inputs.square().sum(0).reshape(1, -1, affine.GROUP).expand_as(groups)
    found = affine.best_lines(groups, shares)
    codes = ((groups + found.minima[..., None]) / found.slopes[..., None]).round().clamp(0, 3)
    errors = (shares * (groups - codes * found.slopes[..., None] + found.minima[..., None]).square()).sum(-1)
    least, slopes = (shares * groups.square()).sum(-1), torch.linspace(0.1, 1.6, 101)[:, None, None, None]
    for minimum in torch.linspace(0, 3, 101):
        levels = slopes * ((groups + minimum) / slopes).round().clamp(0, 3) - minimum
        least = torch.minimum(least, (shares * (groups - levels).square()).sum(-1).amin(0))
    assert float(errors.sum()) < 1.02 * float(least.sum())
    assert (errors < 1.5 * least).all()


def test_units_are_nearly_those_of_a_fine_scan() -> None:
    random = torch.Generator().manual_seed(1)
    wanted, importance = torch.rand(40, 16, generator=random), torch.rand(40, 16, generator=random)
    wanted[0], wanted[1, 3:] = 0, 0
    units, numbers = affine.in_units(wanted, importance)
    assert torch.equal(units, units.half().float())
    assert set(numbers.unique().tolist()) <= set(range(16))
    found = (importance * (wanted - numbers * units).square()).sum(1)
    scan = torch.linspace(0.001, 0.08, 4000)[:, None, None]
    errors = (importance * (wanted - scan * (wanted / scan).round().clamp(0, 15)).square()).sum(-1)
    assert float(found.sum()) < 1.1 * float(errors.amin(0).sum())
    assert float(found[0]) == 0


def test_grids_of_the_fit_lose_much_less_than_ggml_s() -> None:
    weights, inputs = layer(512)
    importance = inputs.square().sum(0)
    grids = affine.fit_grids(weights, importance)
    codes = gptq.round_groups(grids.moved(weights), grids.steps, affine.GROUP, affine.FOUR)
    stock = libggml.quantize(weights.numpy(), CODEC.ggml_type, importance.numpy())
    ours, theirs = (
        float((importance * (weights - found).square()).sum())
        for found in (values(codes, grids), torch.from_numpy(libggml.dequantize(stock, CODEC.ggml_type)))
    )
    assert ours < 0.97 * theirs


@pytest.mark.usefixtures("small")
def test_feedback_is_what_least_squares_does_with_the_columns_left() -> None:
    """Column by column: round it to the grid, then refit all that are left to the layer's outputs by lstsq."""
    weights, inputs = layer(32)
    hessian = inputs.T @ inputs
    grids = affine.fit_grids(weights, hessian.diagonal())
    found = gptq.feed_back(grids.moved(weights), hessian, grids.steps, affine.GROUP, affine.FOUR)
    levels = torch.stack([values(torch.full_like(weights, code), grids) for code in (-1, 0, 1, 2)])
    exact = inputs.double()
    outputs, left = exact @ weights.double().T, weights.double().clone()
    chosen = torch.zeros_like(left)
    codes = torch.zeros_like(left)
    order = hessian.diagonal().argsort(descending=True)
    for place, column in enumerate(order):
        codes[:, column] = (levels[..., column] - left[:, column]).abs().argmin(0).double() - 1
        chosen[:, column] = levels[..., column].gather(0, (codes[:, column] + 1).long()[None])[0]
        done, rest = order[: place + 1], order[place + 1 :]
        missing = outputs - exact[:, done] @ chosen[:, done].T
        left[:, rest] = torch.linalg.lstsq(exact[:, rest], missing).solution.T
    assert torch.equal(found.double(), codes)


@pytest.mark.usefixtures("small")
def test_refit_takes_each_group_s_best_grid_with_the_others_as_they_are() -> None:
    weights, inputs = layer(32)
    codes, grids = random_grids(32, 1)
    found = affine.refit(weights, codes, grids, inputs.T @ inputs)
    assert torch.equal(found.d, grids.d)
    assert torch.equal(found.dmin, grids.dmin)
    pairs = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)).repeat_interleave(N_ROWS, 0)
    for group in range(4):
        tried = affine.Grids(*(part.repeat(256, 1) for part in (grids.d, grids.dmin, grids.scales, grids.minima)))
        tried.scales[:, group], tried.minima[:, group] = pairs.T
        errors = row_errors(weights.repeat(256, 1), values(codes.repeat(256, 1), tried), inputs).reshape(256, N_ROWS)
        grids.scales[:, group], grids.minima[:, group] = found.scales[:, group], found.minima[:, group]
        mine = row_errors(weights, values(codes, grids), inputs)
        assert torch.allclose(mine, errors.amin(0), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(5))
def test_neither_refit_nor_descent_raises_the_error(seed: int) -> None:
    weights, inputs = layer(48, seed)
    hessian = inputs.T @ inputs
    codes, grids = random_grids(48, seed)
    errors = [row_errors(weights, values(codes, grids), inputs)]
    for _ in range(2):
        grids = affine.refit(weights, codes, grids, hessian)
        errors.append(row_errors(weights, values(codes, grids), inputs))
        codes = gptq.descend(grids.moved(weights), codes, grids.steps, hessian, affine.GROUP, affine.FOUR)
        errors.append(row_errors(weights, values(codes, grids), inputs))
    assert all((after <= before * 1.00001).all() for before, after in pairwise(errors))
    assert (errors[2] < errors[1]).all()
    assert (errors[1] < errors[0]).all()


def test_every_step_lowers_the_error_of_what_ggml_reads() -> None:
    weights, inputs = layer(512)
    hessian = gptq.damped(inputs.T @ inputs, 0.01)
    errors = []
    for n_steps in range(len(STEPS) + 1):
        rows = affine.quantized(weights, hessian, **{step: number < n_steps for number, step in enumerate(STEPS)})
        found = torch.from_numpy(libggml.dequantize(CODEC.pack_affine(rows), CODEC.ggml_type))
        errors.append(float(row_errors(weights, found, inputs).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.65 * errors[0]


def test_what_is_computed_is_what_ggml_reads() -> None:
    weights, inputs = layer(512)
    weights[0], weights[1, :256], weights[2], weights[3, :16] = 0, 0.5, weights[2].abs(), 0
    grids = affine.fit_grids(weights, inputs.square().sum(0))
    codes = gptq.round_groups(grids.moved(weights), grids.steps, affine.GROUP, affine.FOUR)
    found = libggml.dequantize(CODEC.pack_affine(affine.stored(codes, grids)), CODEC.ggml_type)
    np.testing.assert_array_equal(found, values(codes, grids).float().numpy())
    assert not found[0].any()
    np.testing.assert_allclose(found[1, :256], 0.5, rtol=1e-3)
    rows = affine.quantized(weights, inputs.T @ inputs, feedback=True, refitted=True, descent=True)
    assert np.isfinite(libggml.dequantize(CODEC.pack_affine(rows), CODEC.ggml_type)).all()


def test_weights_beyond_fp16_are_refused() -> None:
    weights, inputs = layer(256)
    rows = affine.quantized(weights * 1e7, inputs.T @ inputs, feedback=False, refitted=False, descent=False)
    with pytest.raises(
        TensorError, match="a block's scale is inf, but fp16 ends at 65504: store this tensor as bf16 or"
    ):
        CODEC.pack_affine(rows)
