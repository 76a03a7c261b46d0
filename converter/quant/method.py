"""What a method is: a rule that makes ternary rows of floats that aren't ternary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.core.registry import by_name
from tritgguf.converter.core.tensors import CodedRows, Codes, Float32Array, Floats
from tritgguf.converter.errors import UnsupportedError


@dataclass(frozen=True)
class Method:
    """A lossy rule: `code(rows, group)` codes rows, their length a multiple of `group`, with fp16 scales.

    The scale of a group that holds a value that isn't finite isn't either.
    """

    name: str
    code: Callable[[Floats, int], CodedRows]


def methods() -> dict[str, Method]:
    """Return every method by its name."""
    return by_name("tritgguf.converter.quant.methods", "METHOD", Method)


def method_named(name: str) -> Method:
    """Return the method of that name; raise UnsupportedError listing the names there are."""
    known = methods()
    if name not in known:
        raise UnsupportedError(f"unknown method {name!r}; expected one of {', '.join(known)}")
    return known[name]


def code_beyond(rows: Float32Array, thresholds: Float32Array, scales: Float32Array, group: int) -> CodedRows:
    """Code as sign(w) what exceeds its group's threshold, as 0 the rest; a scale below fp16's range stands for zero."""
    codes: Codes = np.empty(rows.shape, np.int8)
    beyond = np.where(scales > 0, thresholds, np.float32(np.inf))[..., None]
    groups = rows.reshape(*scales.shape, group)
    np.subtract(groups > beyond, groups < -beyond, out=codes.reshape(groups.shape), dtype=np.int8)
    return CodedRows(codes, scales, group)
