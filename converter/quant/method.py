"""A method quantizes float rows to codes and scales, with loss if they aren't on such a grid already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.core.registry import by_name
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.errors import UnsupportedError


@dataclass(frozen=True)
class Method:
    """A rule to quantize: `quantize(rows, group_size)` returns codes on `levels` levels, and one fp16 scale per group.

    Rows are (n_rows, n_columns), and `n_columns` is a multiple of `group_size`. If a group holds a NaN or Inf, its
    scale isn't finite. `weighted(rows, group_size, importance)` does the same with the least error weighted by each
    column's importance, float32 (n_columns,), zero or more; None for a rule that takes none.
    """

    name: str
    quantize: Callable[[Floats, int], CodedRows]
    weighted: Callable[[Floats, int, Float32Array], CodedRows] | None = None
    levels: int = 3


def methods() -> dict[str, Method]:
    """Return every method by its name."""
    return by_name("tritgguf.converter.quant.methods", "METHOD", Method)


def method_named(name: str) -> Method:
    """Return the method of that name; raise UnsupportedError, with the known names, if there is none."""
    known = methods()
    if name not in known:
        raise UnsupportedError(f"unknown method {name!r}; expected one of {', '.join(known)}, or gptq")
    return known[name]


def quantize_by_threshold(
    rows: Float32Array, thresholds: Float32Array, scales: Float32Array, group_size: int
) -> CodedRows:
    """Return code sign(w) for each weight whose magnitude exceeds its group's threshold, code 0 for the others.

    `rows` is (n_rows, n_columns); `thresholds` and `scales` are (n_rows, n_groups). All codes are 0 in a group whose
    scale is 0, as fp16 rounds very small ones.
    """
    codes: Codes = np.empty(rows.shape, np.int8)
    beyond = np.where(scales > 0, thresholds, np.float32(np.inf))[..., None]
    groups = rows.reshape(*scales.shape, group_size)
    np.subtract(groups > beyond, groups < -beyond, out=codes.reshape(groups.shape), dtype=np.int8)
    return CodedRows(codes, scales, group_size)
