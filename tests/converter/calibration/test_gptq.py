"""The linear algebra of gptq against brute force and least squares (torch.linalg.lstsq)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.oracles import libggml
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.quant.codec import ternary_codec

torch = pytest.importorskip("torch", reason="needs the ptq extra")

from tritgguf.converter.calibration import gptq  # noqa: E402 (it imports torch)

GROUP, N_COLUMNS, N_ROWS = 8, 32, 6
three_and_four = pytest.mark.parametrize("highest", [1, 2])


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (6, 32), and inputs (80, 32) whose columns hang together and differ in size."""
    random = torch.Generator().manual_seed(3)
    mix = 0.1 * torch.randn(N_COLUMNS, N_COLUMNS, generator=random) + torch.eye(N_COLUMNS)
    inputs = torch.randn(80, N_COLUMNS, generator=random) @ mix * (0.5 + torch.rand(N_COLUMNS, generator=random))
    return torch.randn(N_ROWS, N_COLUMNS, generator=random), inputs


def hessian_of(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.T @ inputs


def scanned(group: torch.Tensor, importance: torch.Tensor, highest: int) -> float:
    """The least error of one group over a fine scan of scales of both signs, each with its nearest codes."""
    scales = torch.linspace(0.02, 1.5, 3000) * group.abs().max()
    best = float((importance * group.square()).sum())
    for signed in (scales, -scales):
        codes = (group[None] / signed[:, None]).round().clamp(-1, highest)
        errors = (importance * (group[None] - codes * signed[:, None]).square()).sum(1)
        best = min(best, float(errors.min()))
    return best


def test_the_scale_of_three_codes_is_the_best_of_all(layer) -> None:
    weights, inputs = layer
    importance = hessian_of(inputs).diagonal()
    scales = gptq.fit_scales(weights, importance, GROUP, 1)
    codes = gptq.round_groups(weights, scales, GROUP, 1)
    errors = (importance * (weights - codes * gptq.spread(scales, GROUP)).square()).reshape(N_ROWS, -1, GROUP).sum(-1)
    for row in range(N_ROWS):
        for number in range(N_COLUMNS // GROUP):
            columns = slice(number * GROUP, (number + 1) * GROUP)
            least = scanned(weights[row, columns], importance[columns], 1)
            assert least * 0.999 <= float(errors[row, number]) <= least * 1.0001


def test_the_scale_of_four_codes_is_nearly_the_best_and_better_than_that_of_three(layer) -> None:
    weights, inputs = layer
    importance = hessian_of(inputs).diagonal()
    errors = {}
    for highest in (1, 2):
        scales = gptq.fit_scales(weights, importance, GROUP, highest)
        codes = gptq.round_groups(weights, scales, GROUP, highest)
        errors[highest] = float((importance * (weights - codes * gptq.spread(scales, GROUP)).square()).sum())
    assert set(codes.unique().tolist()) == {-1, 0, 1, 2}
    assert (scales < 0).any()
    groups = [(row, slice(start, start + GROUP)) for row in range(N_ROWS) for start in range(0, N_COLUMNS, GROUP)]
    least = sum(scanned(weights[row, columns], importance[columns], 2) for row, columns in groups)
    assert least * 0.999 <= errors[2] <= least * 1.1
    assert errors[2] < 0.8 * errors[1]


@three_and_four
def test_feedback_is_what_least_squares_does_with_the_columns_left(layer, highest: int, monkeypatch) -> None:
    """Column by column: round it, then refit all that are left to the layer's outputs by lstsq, in float64."""
    monkeypatch.setattr(gptq, "BLOCK", 5)
    weights, inputs = layer
    hessian = hessian_of(inputs)
    scales = gptq.fit_scales(weights, hessian.diagonal(), GROUP, highest)
    found = gptq.feed_back(weights, hessian, scales, GROUP, highest)
    columns, exact = gptq.spread(scales, GROUP).double(), inputs.double()
    outputs = exact @ weights.double().T
    left, codes = weights.double().clone(), torch.zeros(N_ROWS, N_COLUMNS, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True)
    for place, column in enumerate(order):
        codes[:, column] = (left[:, column] / columns[:, column]).round().clamp(-1, highest)
        done, rest = order[: place + 1], order[place + 1 :]
        missing = outputs - exact[:, done] @ (codes * columns)[:, done].T
        left[:, rest] = torch.linalg.lstsq(exact[:, rest], missing).solution.T
    assert torch.equal(found.double(), codes)
    rounded = gptq.round_groups(weights, scales, GROUP, highest)
    assert gptq.error(weights, found, scales, hessian, GROUP) < gptq.error(weights, rounded, scales, hessian, GROUP)


def test_the_factor_is_the_inverse_s(layer) -> None:
    hessian = hessian_of(layer[1])
    upper = gptq.inverse_factor(hessian)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ hessian, torch.eye(N_COLUMNS), atol=1e-3, rtol=0)


@three_and_four
def test_refitted_scales_are_those_of_least_squares(layer, highest: int) -> None:
    weights, inputs = layer
    hessian = hessian_of(inputs)
    scales = gptq.fit_scales(weights, hessian.diagonal(), GROUP, highest)
    codes = gptq.round_groups(weights, scales, GROUP, highest)
    codes[2, :GROUP] = 0  # a group without any nonzero code
    found = gptq.refit(weights, codes, hessian, GROUP)
    for row in range(N_ROWS):
        sums = (inputs * codes[row]).double().reshape(len(inputs), -1, GROUP).sum(-1)
        wanted = torch.linalg.lstsq(sums, (inputs @ weights[row]).double(), driver="gelsd").solution
        torch.testing.assert_close(found[row].double(), wanted, rtol=1e-3, atol=1e-4)
    assert gptq.error(weights, codes, found, hessian, GROUP) < gptq.error(weights, codes, scales, hessian, GROUP)


@three_and_four
@pytest.mark.parametrize("seed", range(5))
def test_neither_refit_nor_descent_raises_the_error(seed: int, highest: int, monkeypatch) -> None:
    monkeypatch.setattr(gptq, "BLOCK", 7)
    random = torch.Generator().manual_seed(seed)
    weights, inputs = torch.randn(4, 24, generator=random), torch.randn(40, 24, generator=random)
    hessian = hessian_of(inputs)
    codes = torch.randint(-1, highest + 1, (4, 24), generator=random).float()
    scales = torch.randn(4, 3, generator=random)
    errors = [gptq.error(weights, codes, scales, hessian, GROUP)]
    for _ in range(2):
        scales = gptq.refit(weights, codes, hessian, GROUP)
        errors.append(gptq.error(weights, codes, scales, hessian, GROUP))
        codes = gptq.descend(weights, codes, scales, hessian, GROUP, highest)
        errors.append(gptq.error(weights, codes, scales, hessian, GROUP))
    assert all(after <= before * 1.000001 for before, after in pairwise(errors))
    assert errors[2] < errors[1] < errors[0]


def test_descent_takes_each_code_s_best_with_the_others_as_they_are(layer) -> None:
    weights, inputs = layer
    hessian = hessian_of(inputs)
    scales = gptq.fit_scales(weights, hessian.diagonal(), GROUP, 2)
    codes = gptq.round_groups(weights, scales, GROUP, 2)
    found = gptq.descend(weights, codes, scales, hessian, GROUP, 2)
    for column in range(N_COLUMNS):
        tried = []
        for code in (-1, 0, 1, 2):
            other = codes.clone()
            other[:, column] = code
            difference = (weights - other * gptq.spread(scales, GROUP)).double() @ inputs.double().T
            tried.append(difference.square().sum(1))
        codes[:, column] = torch.stack(tried).argmin(0) - 1
    assert torch.equal(found, codes)


def test_the_corrected_target_is_that_of_least_squares(layer) -> None:
    """Its weights make of the quantized model's inputs what the float model makes of its own, and the stream's rest."""
    weights, inputs = layer
    random = torch.Generator().manual_seed(9)
    theirs = inputs + 0.3 * torch.randn(inputs.shape, generator=random)
    rest = torch.randn(len(inputs), N_ROWS, generator=random)
    hessian = hessian_of(inputs)
    drift = weights @ ((theirs - inputs).T @ inputs)
    found = gptq.corrected(weights, hessian, drift + rest.T @ inputs)
    wanted = torch.linalg.lstsq(inputs.double(), (theirs @ weights.T + rest).double()).solution.T
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)
    without = gptq.corrected(weights, hessian, drift)
    wanted = torch.linalg.lstsq(inputs.double(), (theirs @ weights.T).double()).solution.T
    torch.testing.assert_close(without.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "highest"), [("q2_0", 2), ("q2_0", 1), ("tq1_0", 1), ("tq2_0", 1)])
def test_what_is_packed_is_what_ggml_reads(name: str, highest: int) -> None:
    codec = ternary_codec(name)
    random = torch.Generator().manual_seed(1)
    weights, inputs = torch.randn(8, 512, generator=random), torch.randn(700, 512, generator=random)
    weights[0, : codec.block] = 0
    codes, scales = gptq.quantized(
        weights, hessian_of(inputs), codec.block, highest, feedback=True, refitted=True, descent=True
    )
    assert set(codes.unique().tolist()) == set(range(-1, highest + 1))
    assert torch.equal(scales, scales.half().float())
    assert bool((scales < 0).any()) == (highest == 2)
    stored = codec.pack(CodedRows(codes.numpy(), scales.numpy(), codec.block))
    wanted = (codes * gptq.spread(scales, codec.block)).numpy()
    np.testing.assert_array_equal(libggml.dequantize(stored, codec.ggml_type), wanted)


def test_every_step_lowers_the_error(layer) -> None:
    weights, inputs = layer
    hessian = gptq.damped(hessian_of(inputs), 0.01)
    steps = ({}, {"feedback": True}, {"refitted": True}, {"descent": True})
    asked = dict.fromkeys(("feedback", "refitted", "descent"), False)
    errors = []
    for step in steps:
        asked |= step
        codes, scales = gptq.quantized(weights, hessian, GROUP, 2, **asked)
        errors.append(gptq.error(weights, codes.float(), scales, hessian, GROUP))
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)
