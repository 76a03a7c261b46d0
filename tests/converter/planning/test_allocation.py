"""Options within a number of bytes, compared with every combination of options."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritgguf.converter.planning.allocation import Option, allocate, least_bytes

TENSORS = st.lists(
    st.lists(st.builds(Option, st.integers(1, 30), st.integers(0, 100).map(float)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def totals(tensors: Sequence[Sequence[Option]], numbers: Sequence[int]) -> Option:
    chosen = [options[number] for options, number in zip(tensors, numbers, strict=True)]
    return Option(sum(option.n_bytes for option in chosen), sum(option.loss for option in chosen))


def every_choice(tensors: Sequence[Sequence[Option]]) -> list[Option]:
    return [totals(tensors, numbers) for numbers in itertools.product(*(range(len(some)) for some in tensors))]


@settings(max_examples=60)
@given(TENSORS, st.integers(0, 130))
def test_no_choice_of_as_many_bytes_loses_less_than_one_step(tensors: list[list[Option]], n_bytes: int) -> None:
    """Never more bytes than allowed, and from the best loss never further than one tensor's options are apart."""
    fitting = [choice.loss for choice in every_choice(tensors) if choice.n_bytes <= n_bytes]
    if not fitting:
        assert n_bytes < least_bytes(tensors)
        with pytest.raises(ValueError, match="the smallest options take"):
            allocate(tensors, n_bytes)
        return
    found = totals(tensors, allocate(tensors, n_bytes))
    furthest = max(max(option.loss for option in some) - min(option.loss for option in some) for some in tensors)
    assert found.n_bytes <= n_bytes
    assert found.loss <= min(fitting) + furthest


@settings(max_examples=60)
@given(TENSORS, st.floats(0.01, 50))
def test_where_a_price_per_byte_decides_nothing_is_better(tensors: list[list[Option]], price: float) -> None:
    """The least loss + price * bytes is Lagrange's choice: of its bytes, no other loses less."""
    numbers = [
        min(range(len(some)), key=lambda number, some=some: (some[number].loss + price * some[number].n_bytes, number))
        for some in tensors
    ]
    n_bytes = totals(tensors, numbers).n_bytes
    best = min(choice.loss for choice in every_choice(tensors) if choice.n_bytes <= n_bytes)
    assert totals(tensors, allocate(tensors, n_bytes)).loss == best


def test_what_a_step_leaves_goes_to_options_that_fit() -> None:
    """The first tensor's step gains most per byte and doesn't fit; the second's does, and a worse one of the first."""
    tensors = [[Option(1, 100.0), Option(4, 90.0), Option(10, 0.0)], [Option(1, 10.0), Option(3, 5.0)]]
    large = [[Option(1000, 1.0)], [Option(1000, 1.0)]]
    assert allocate([*tensors, *large], 2007)[:2] == [1, 1]
    assert allocate([*tensors, *large], 2013)[:2] == [2, 1]
    assert allocate([*tensors, *large], 2002)[:2] == [0, 0]


def test_one_large_step_isn_t_left_out_for_small_ones() -> None:
    """Embeddings, whose step takes all there is to spend, against layers that gain a little more per byte."""
    layers = [[Option(10, 1.0), Option(20, 0.0)]] * 5
    embeddings = [Option(100, 50.0), Option(1000, 0.0)]
    assert allocate([*layers, embeddings], 50 + 1000) == [0] * 5 + [1]
    assert sorted(allocate([*layers, embeddings], 50 + 1000 + 10)) == [0, 0, 0, 0, 1, 1]
