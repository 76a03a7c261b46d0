"""What a method is: a rule that makes ternary rows of floats that aren't ternary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.kernels import Kernel
from tritgguf.converter.registry import offered
from tritgguf.converter.tensors import CodedRows, Codes, Float32Array


@dataclass(frozen=True)
class Method:
    """A lossy rule: `code(rows, group)` codes float32 rows, their length a multiple of `group`, with fp16 scales."""

    name: str
    code: Callable[[Float32Array, int], CodedRows]


def methods() -> dict[str, Method]:
    """Return every method by its name."""
    return {method.name: method for method in offered("tritgguf.converter.methods", "METHOD", Method)}


def method_named(name: str) -> Method:
    """Return the method of that name; raise UnsupportedError listing the names there are."""
    known = methods()
    if name not in known:
        raise UnsupportedError(f"unknown method {name!r}; expected one of {', '.join(known)}")
    return known[name]


def code_beyond(rows: Float32Array, thresholds: Float32Array, scales: Float32Array, group: int) -> CodedRows:
    """Code as sign(w) what exceeds its group's threshold, as 0 the rest; a scale below fp16's range stands for zero."""
    codes: Codes = np.empty(rows.shape, np.int8)
    thresholds = np.where(scales > 0, thresholds, np.float32(np.inf))
    if CODES_BEYOND(rows.reshape(-1, group), thresholds.reshape(-1), codes.reshape(-1, group)) is None:
        groups, beyond = rows.reshape(*thresholds.shape, group), thresholds[..., None]
        np.subtract(groups > beyond, groups < -beyond, out=codes.reshape(groups.shape), dtype=np.int8)
    return CodedRows(codes, scales, group)


def _codes_beyond(groups: Float32Array, thresholds: Float32Array, codes: Codes) -> int:
    for number in range(len(groups)):
        values, found, threshold = groups[number], codes[number], thresholds[number]
        for index in range(len(values)):
            found[index] = np.int8(values[index] > threshold) - np.int8(values[index] < -threshold)
    return 0


CODES_BEYOND = Kernel(_codes_beyond)
