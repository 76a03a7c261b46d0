"""Figures in what llama.cpp's llama-perplexity prints, as it prints them."""

from __future__ import annotations

import re
from typing import NamedTuple


class Figure(NamedTuple):
    """A regular expression for it in the output, and the key of tritgguf's; `factor` is 100 for percents."""

    pattern: str
    key: str
    factor: float = 1.0


_NUMBER = r"(-?[\d.]+)"
_BOTH = rf"{_NUMBER} ± +[\d.]+"
_ERROR = rf"-?[\d.]+ ± +{_NUMBER}"
FIGURES = {
    "Final estimate": Figure(rf"Final estimate: PPL = {_NUMBER} \+/- [\d.]+", "ppl"),
    "Final estimate, error": Figure(rf"Final estimate: PPL = [\d.]+ \+/- {_NUMBER}", "ppl_error"),
    "PPL(Q)": Figure(rf"Mean PPL\(Q\) +: +{_BOTH}", "ppl"),
    "PPL(Q), error": Figure(rf"Mean PPL\(Q\) +: +{_ERROR}", "ppl_error"),
    "PPL(base)": Figure(rf"Mean PPL\(base\) +: +{_BOTH}", "base_ppl"),
    "PPL(base), error": Figure(rf"Mean PPL\(base\) +: +{_ERROR}", "base_ppl_error"),
    "ratio": Figure(rf"Mean PPL\(Q\)/PPL\(base\) +: +{_BOTH}", "ppl_ratio"),
    "ratio, error": Figure(rf"Mean PPL\(Q\)/PPL\(base\) +: +{_ERROR}", "ppl_ratio_error"),
    "KLD": Figure(rf"Mean +KLD: +{_BOTH}", "kld_mean"),
    "KLD, error": Figure(rf"Mean +KLD: +{_ERROR}", "kld_error"),
    "KLD, maximum": Figure(rf"Maximum KLD: +{_NUMBER}", "kld_max"),
    "KLD, 99 %": Figure(rf"99\.0% +KLD: +{_NUMBER}", "kld_99"),
    "KLD, median": Figure(rf"Median +KLD: +{_NUMBER}", "kld_median"),
    "Δp": Figure(rf"Mean +Δp: +{_BOTH} %", "delta_p_mean", 100.0),
    "Δp, error": Figure(rf"Mean +Δp: +{_ERROR} %", "delta_p_error", 100.0),
    "Δp, RMS": Figure(rf"RMS Δp +: +{_BOTH} %", "delta_p_rms", 100.0),
    "Δp, RMS, error": Figure(rf"RMS Δp +: +{_ERROR} %", "delta_p_rms_error", 100.0),
    "same top": Figure(rf"Same top p: +{_BOTH} %", "same_top1", 100.0),
    "same top, error": Figure(rf"Same top p: +{_ERROR} %", "same_top1_error", 100.0),
}


def read_figures(printed: str) -> dict[str, str]:
    """Return the figures that llama-perplexity printed, with its digits."""
    found = {name: re.search(figure.pattern, printed) for name, figure in FIGURES.items()}
    return {name: match[1] for name, match in found.items() if match}


def tolerance(digits: str) -> float:
    """Return half a unit of the last digit, and what float32 sums lose."""
    unit = 10.0 ** -len(digits.partition(".")[2])
    return 0.5 * unit + 1e-7 * abs(float(digits)) + 1e-12
