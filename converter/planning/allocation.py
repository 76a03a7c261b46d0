"""Choose one option for each tensor so that all together lose least within a number of bytes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

N_LARGEST = 2  # embeddings and output layer, mostly


class Option(NamedTuple):
    """What a tensor takes in one type, and what the model loses by it."""

    n_bytes: int
    loss: float


def least_bytes(tensors: Sequence[Sequence[Option]]) -> int:
    """Return what the smallest options take together."""
    return sum(min(options).n_bytes for options in tensors)


def allocate(tensors: Sequence[Sequence[Option]], n_bytes: int) -> list[int]:
    """Return the number of each tensor's option; together they take at most `n_bytes`.

    Each tensor starts with its smallest option and goes up the lower convex hull of its options, the step that gains
    most per byte first: that is the least loss of all choices of as many bytes. Steps that no longer fit are left out,
    and what is left goes to any better option that fits. A step of the embeddings may be most of what there is to
    spend, so this is done for each combination of options of the largest two tensors. Raises ValueError where the
    smallest options don't fit.
    """
    if (missing := least_bytes(tensors) - n_bytes) > 0:
        raise ValueError(f"the smallest options take {missing} bytes more than {n_bytes}")
    largest = sorted(range(len(tensors)), key=lambda n: -max(tensors[n]).n_bytes)[:N_LARGEST]
    best: tuple[float, list[int]] | None = None
    for numbers in itertools.product(*(range(len(tensors[n])) for n in largest)):
        fixed = dict(zip(largest, numbers, strict=True))
        some = [[options[fixed[n]]] if n in fixed else options for n, options in enumerate(tensors)]
        if least_bytes(some) > n_bytes:
            continue
        found = _allocated(some, n_bytes)
        loss = sum(options[number].loss for options, number in zip(some, found, strict=True))
        if best is None or loss < best[0]:
            best = loss, [fixed.get(n, number) for n, number in enumerate(found)]
    assert best is not None
    return best[1]


def _allocated(tensors: Sequence[Sequence[Option]], n_bytes: int) -> list[int]:
    hulls = [_hull(options) for options in tensors]
    chosen = [hull[0] for hull in hulls]
    left = n_bytes - least_bytes(tensors)
    steps = [(-_gain(tensors[n], hull[0], hull[1]), n, 1) for n, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, n, place = heapq.heappop(steps)
        options, hull = tensors[n], hulls[n]
        more = options[hull[place]].n_bytes - options[chosen[n]].n_bytes
        if more > left:
            continue
        chosen[n], left = hull[place], left - more
        if place + 1 < len(hull):
            heapq.heappush(steps, (-_gain(options, hull[place], hull[place + 1]), n, place + 1))
    _spend(tensors, chosen, left)
    return chosen


def _hull(options: Sequence[Option]) -> list[int]:
    """Return the options on the lower convex hull of loss over bytes, smallest first; each loses less than the last."""
    hull: list[int] = []
    for index in sorted(range(len(options)), key=lambda index: options[index]):
        if hull and options[index].loss >= options[hull[-1]].loss:
            continue
        while len(hull) > 1 and _gain(options, hull[-1], index) >= _gain(options, hull[-2], hull[-1]):
            hull.pop()
        hull.append(index)
    return hull


def _gain(options: Sequence[Option], small: int, large: int) -> float:
    """Return by how much the loss falls per byte."""
    return (options[small].loss - options[large].loss) / (options[large].n_bytes - options[small].n_bytes)


def _spend(tensors: Sequence[Sequence[Option]], chosen: list[int], left: int) -> None:
    """Replace options, the largest gain first, while a better one fits into the bytes that are left."""
    while True:
        best: tuple[float, int, int] | None = None
        for n, options in enumerate(tensors):
            now = options[chosen[n]]
            for index, other in enumerate(options):
                gain = now.loss - other.loss
                if other.n_bytes - now.n_bytes <= left and gain > 0 and (best is None or gain > best[0]):
                    best = gain, n, index
        if best is None:
            return
        _, n, index = best
        left -= tensors[n][index].n_bytes - tensors[n][chosen[n]].n_bytes
        chosen[n] = index
