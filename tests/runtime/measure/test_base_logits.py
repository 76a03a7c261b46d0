"""The rows of a file of log-probabilities: coded as the source says, and read again within half a step."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritgguf.runtime.measure.base_logits import decode, encode, row_codes


@pytest.mark.parametrize("n_vocab", [7, 8])
def test_a_row_by_hand(n_vocab: int) -> None:
    """Two likely tokens, the others 20 nats below: they get the lowest log-probability, 16 below the highest."""
    logits = np.full((1, n_vocab), -20, np.float32)
    logits[0, 2], logits[0, 5] = 0.0, -8.0
    (row,) = encode(logits)
    assert len(row) == row_codes(n_vocab) == 12
    step, lowest = struct.unpack("<2f", row[:4].tobytes())
    normalizer = np.log(1 + np.exp(-8.0) + (n_vocab - 2) * np.exp(-20.0))
    assert step == pytest.approx(16 / 65535)
    assert lowest == pytest.approx(-16 - normalizer, rel=1e-6)
    assert row[4 + 2] == 65535
    assert row[4 + 5] in (32767, 32768)
    assert row[4:].sum(dtype=int) == int(row[4 + 2]) + int(row[4 + 5])


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 33)), elements=st.floats(-50, 50, width=32)),
)
def test_log_probabilities_are_within_half_a_step(logits: np.ndarray) -> None:
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    clipped = np.maximum(exact, exact.max(axis=1, keepdims=True) - 16)
    found = decode(encode(logits), logits.shape[1])
    assert np.abs(found - clipped).max() <= 0.5 * 16 / 65535 + 2e-5


def test_equal_logits_have_no_step() -> None:
    row = encode(np.full((1, 4), 3.5, np.float32))
    assert not row[0, 4:].any()
    np.testing.assert_allclose(decode(row, 4), np.log(1 / 4), rtol=1e-6)
