"""What is measured at each scored position, and the figures that llama-perplexity makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tritgguf.runtime.measure.base_logits import RANGE, Codes, Floats, decode

Values = NDArray[np.float64]
_MOST = 700.0  # e to the power of more isn't a float


@dataclass(frozen=True)
class Scores:
    """One value for each scored position, in nats; the last four are None without a base.

    `nll` is the next token's negative log-likelihood, `base_nll` that of the base, `kld` KL(base || file), `delta_p`
    the difference of the next token's probabilities (file minus base), `same_top1` 1 where both have the same most
    probable token.
    """

    nll: Values
    base_nll: Values | None = None
    kld: Values | None = None
    delta_p: Values | None = None
    same_top1: Values | None = None


def score(logits: Floats, targets: NDArray[np.int32], base: Codes | None) -> Scores:
    """Score logits, (n_rows, n_vocab), of which row i is to predict targets[i]; `base` are the base's rows.

    llama-perplexity adds up float64 without a base and float32 with one; so do we, to print the same digits.
    """
    rows = np.arange(len(logits))
    highest = logits.max(axis=1)
    log_sums = np.log(np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64))
    nll: Values = log_sums - (logits[rows, targets] - highest)
    if base is None:
        return Scores(nll)
    normalizers = highest + log_sums.astype(np.float32)
    nll = (normalizers - logits[rows, targets]).astype(np.float64)
    log_p = decode(base, logits.shape[1])
    base_nll: Values = -log_p[rows, targets].astype(np.float64)
    same = log_p.argmax(axis=1) == logits.argmax(axis=1)
    ratios = log_p - logits
    ratios += normalizers[:, None]
    ratios *= np.exp(log_p)
    ratios[log_p <= -RANGE] = 0  # their probabilities in the base aren't known
    kld: Values = ratios.sum(axis=1, dtype=np.float64)
    return Scores(nll, base_nll, kld, np.exp(-nll) - np.exp(-base_nll), same.astype(np.float64))


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all parts, in order."""

    def column(name: str) -> Values | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    nll = column("nll")
    assert nll is not None
    return Scores(nll, column("base_nll"), column("kld"), column("delta_p"), column("same_top1"))


@dataclass(frozen=True)
class Divergence:
    """How a file's predictions differ from the base's; `*_error` are standard errors, shares are in 0..1.

    `ppl_ratio` is the file's perplexity divided by the base's, KL divergences are in nats.
    """

    base_ppl: float
    base_ppl_error: float
    ppl_ratio: float
    ppl_ratio_error: float
    kld_mean: float
    kld_error: float
    kld_median: float
    kld_99: float
    kld_max: float
    same_top1: float
    same_top1_error: float
    delta_p_mean: float
    delta_p_error: float
    delta_p_rms: float
    delta_p_rms_error: float


@dataclass(frozen=True)
class Figures:
    """A file's perplexity over `n_scored` tokens, with its standard error, and how it differs from the base."""

    n_scored: int
    ppl: float
    ppl_error: float
    divergence: Divergence | None

    def as_json(self) -> dict[str, float | None]:
        of_base = dict.fromkeys(Divergence.__dataclass_fields__) | (asdict(self.divergence) if self.divergence else {})
        return {"scored_tokens": self.n_scored, "ppl": self.ppl, "ppl_error": self.ppl_error, **of_base}


def figures(scores: Scores) -> Figures:
    """Return the figures of a file's scores, by llama-perplexity's formulas."""
    mean, error = _mean_and_error(scores.nll)
    ppl = _exp(mean)
    return Figures(len(scores.nll), ppl, ppl * error, _divergence(scores))


def _divergence(scores: Scores) -> Divergence | None:
    if scores.base_nll is None or scores.kld is None or scores.delta_p is None or scores.same_top1 is None:
        return None
    base_mean, base_error = _mean_and_error(scores.base_nll)
    # The error of a difference is that of the paired differences: most tokens are as hard for both.
    log_ratio, log_ratio_error = _mean_and_error(scores.nll - scores.base_nll)
    kld, kld_error = _mean_and_error(scores.kld)
    delta_p, delta_p_error = _mean_and_error(scores.delta_p)
    square, square_error = _mean_and_error(scores.delta_p**2)
    same, n = float(scores.same_top1.mean()), len(scores.kld)
    rms = math.sqrt(square)
    return Divergence(
        base_ppl=_exp(base_mean),
        base_ppl_error=_exp(base_mean) * base_error,
        ppl_ratio=_exp(log_ratio),
        ppl_ratio_error=_exp(log_ratio) * log_ratio_error,
        kld_mean=kld,
        kld_error=kld_error,
        kld_median=float(np.median(scores.kld)),
        kld_99=_quantile(scores.kld, 0.99),
        kld_max=float(scores.kld.max()),
        same_top1=same,
        same_top1_error=math.sqrt(same * (1 - same) / max(n - 1, 1)),
        delta_p_mean=delta_p,
        delta_p_error=delta_p_error,
        delta_p_rms=rms,
        delta_p_rms_error=0.5 / rms * square_error if rms else 0.0,
    )


def _mean_and_error(values: Values) -> tuple[float, float]:
    """Return the mean and its standard error, 0 for a single value."""
    n = len(values)
    return float(values.mean()), math.sqrt(float(values.var()) / (n - 1)) if n > 1 else 0.0


def _quantile(values: Values, fraction: float) -> float:
    """Return the value below which a fraction lies, between the two next to it; the place is rounded to float32."""
    place = float(np.float32(fraction) * np.float32(len(values) - 1))
    below = min(int(place), len(values) - 1)
    low, high = np.sort(values)[[below, min(below + 1, len(values) - 1)]].tolist()
    return float(low + (place - below) * (high - low))


def _exp(value: float) -> float:
    return math.exp(min(value, _MOST))
