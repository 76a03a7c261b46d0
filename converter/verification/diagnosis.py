"""Find out why a stored tensor differs from its source: another row order, another tensor's values, a wrong scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.verification.tensor_check import Pair, differences

SAME_SIGNS = 0.99  # if more of the signs than this agree, the codes are right
FEW = 0.1  # if at most this share of rows differs, single rows are damaged


def diagnosis(pair: Pair, others: Sequence[Pair]) -> str | None:
    """Return what is wrong with a tensor, in words, or None if unknown; `others` are the model's tensors."""
    rows = next(pair.chunks)
    have, want = pair.have(rows), pair.want(rows)
    found = differences(pair)
    if len(found.bad_rows) <= FEW * len(found.row_errors):
        return None  # the numbers of the differing rows tell enough
    natural = replace(pair, spec=replace(pair.spec, rows=None))
    if pair.spec.rows is not None and _nearer(have, natural.want(rows), want):
        return "its rows are in the checkpoint's order, but the graph needs another order"
    if _same_signs(have, want):
        return _scale_fault(have, want)
    for other in others:
        if other.spec.shape == pair.spec.shape and other is not pair and _nearer(have, other.want(rows), want):
            return f"it holds the values of {other.spec.source}"
    return "its rows are the source's in another order" if _same_rows(pair) else None


def _nearer(have: Float32Array, candidate: Float32Array, want: Float32Array) -> bool:
    """Whether the stored values are much closer to `candidate` than to the expected ones."""
    return bool(np.linalg.norm(have - candidate) < np.linalg.norm(have - want) / 2)


def _same_signs(have: Float32Array, want: Float32Array) -> bool:
    """Whether the signs agree but the magnitudes don't."""
    used = want != 0
    return bool(used.any() and (np.sign(have[used]) == np.sign(want[used])).mean() > SAME_SIGNS) and not _near(
        have, want
    )


def _near(have: Float32Array, want: Float32Array) -> bool:
    """Whether the norms agree within 1 %."""
    return bool(abs(np.linalg.norm(have) / np.linalg.norm(want) - 1) < 0.01)


def _scale_fault(have: Float32Array, want: Float32Array) -> str:
    used = (want != 0) & (have != 0)
    products = np.abs(have[used].astype(np.float64) * want[used])
    if abs(np.median(products) - 1) < 0.01:
        return "its scale is inverted: each value is 1 / the expected one"
    ratio = np.median(have[used].astype(np.float64) / want[used])
    return f"its scale is wrong: the values are {ratio:.4g} times the source's"


def _same_rows(pair: Pair) -> bool:
    """Whether the sorted norms of the rows are those of the source."""
    norms = [
        np.sort(np.concatenate([np.linalg.norm(read(rows), axis=1) for rows in pair.chunks]))
        for read in (pair.have, pair.want)
    ]
    return len(norms[0]) > 1 and np.allclose(norms[0], norms[1], rtol=1e-3)
